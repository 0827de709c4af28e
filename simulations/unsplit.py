"""Unsplit PEFT training on the batches that the federation's clients would send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig as PeftLoraConfig, get_peft_model
from torch import nn

from clients.build import EdgeParts, load_parts
from clients.edge_client import EdgeClient
from clients.simulated_data import SimulatedData
from fedlora.config import Scenario
from fedlora.server.compute import AdapterState
from fedlora.split import compute_as_kept, find_family, load_whole
from fedlora.tasks import IGNORED, Sample

_EVALUATION_ROWS = 64


@dataclass(frozen=True)
class UnsplitResult:
    """What unsplit training came to.

    Attributes
    ----------
    losses
        Training loss of each step.
    loss
        Mean held-out loss.
    accuracy
        Held-out accuracy; None for language modelling.
    """

    losses: Sequence[float]
    loss: float
    accuracy: float | None


class Unsplit:
    """One undivided model, one optimiser, and the same rows in every step.

    Parameters
    ----------
    scenario
        A scenario with all clients in every round and one batch a step. A head that trains must be
        shared every step: only then is there an undivided model to compare with.
    adapter
        Initial factors, as the engine's ``adapter`` returns them.
    """

    def __init__(self, scenario: Scenario, adapter: AdapterState) -> None:
        self.scenario = scenario
        data = SimulatedData(scenario, scenario.federation.clients)
        self.parts: EdgeParts = load_parts(scenario, data.labels)
        self.clients: list[EdgeClient] = [
            data.build(self.parts, number) for number in range(scenario.federation.clients)
        ]
        self.pooled = self.parts.model.task.pooled
        folder = self.parts.checkpoint.folder
        base = load_whole(folder, pooled=self.pooled, dtype=torch.float32)
        if form := scenario.model.few_bits:
            cut = self.parts.model.geometry.cut
            layers = find_family(self.parts.checkpoint).layers
            compute_as_kept(base, layers, range(cut.start, cut.stop), form)
        prefix = "" if self.pooled else f"{base.base_model_prefix}."
        names = [prefix + name.removesuffix(".A") for name in adapter if name.endswith(".A")]
        config = PeftLoraConfig(
            r=scenario.lora.r_max, lora_alpha=scenario.lora.alpha, target_modules=names
        )
        self.model = get_peft_model(base, config).eval()
        for name in names:
            layer = self.model.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.data.copy_(adapter[name.removeprefix(prefix) + ".A"])
            layer.lora_B["default"].weight.data.copy_(adapter[name.removeprefix(prefix) + ".B"])
            layer.lora_A["default"].weight.requires_grad_(not scenario.lora.freeze_a)
        for name, tensor in adapter.items():
            if not name.endswith((".A", ".B")):  # what lora.also names
                parameter = self.model.base_model.model.get_parameter(prefix + name)
                parameter.data.copy_(tensor)
                parameter.requires_grad_()
        self.head = self.clients[0].head.module if self.pooled else None

    def train(self) -> UnsplitResult:
        """Train for all steps of the scenario and evaluate once."""
        config = self.scenario.train
        lora = [p for p in self.model.parameters() if p.requires_grad]
        head = list(self.head.parameters()) if self.head is not None else []
        groups: list[dict[str, Any]] = [{"params": lora, "head": False}]
        if head:
            groups.append({"params": head, "head": True})
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        losses, own = [], [client.door.truth(client.train) for client in self.clients]
        for step in range(config.total_steps):
            samples = [
                records[number]
                for records, client in zip(own, self.clients, strict=True)
                for number in client.batches.indices()
            ]
            total, weight = self._loss(samples)
            loss = total / weight
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if config.clip_norm > 0:
                nn.utils.clip_grad_norm_([*lora, *head], config.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate(step, head=group["head"])
            optimizer.step()
            losses.append(loss.item())
        return UnsplitResult(losses, *self._evaluate())

    def _loss(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, int]:
        """Return the unreduced loss and what to divide it by."""
        logits, targets = self._logits(samples)
        loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
        return loss, int((targets != IGNORED).sum())

    def _logits(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(sample.ids) for sample in samples])
        longest = int(lengths.max())
        ids = torch.zeros(len(samples), longest, dtype=torch.long)
        for row, sample in enumerate(samples):
            ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        mask = (torch.arange(longest) < lengths[:, None]).long()
        output = self.model(input_ids=ids, attention_mask=mask)
        if self.head is None:
            targets = torch.full_like(ids, IGNORED)
            for row, sample in enumerate(samples):
                assert isinstance(sample.target, tuple)
                targets[row, : len(sample.ids)] = torch.tensor(sample.target)
            return output.logits.flatten(0, 1), targets.flatten()
        states = output.last_hidden_state
        pools: Mapping[str, torch.Tensor] = {
            "last": states[torch.arange(len(samples)), lengths - 1],
            "mean": (states * mask[..., None]).sum(1) / lengths[:, None],
            "cls": states[:, 0],
        }
        return self.head(pools[self.scenario.task.pool]), torch.tensor([s.target for s in samples])

    @torch.no_grad()
    def _evaluate(self) -> tuple[float, float | None]:
        loss, weight, correct, rows = 0.0, 0, 0, 0
        for samples in self._held_out():
            logits, targets = self._logits(samples)
            total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
            loss += total.item()
            weight += int((targets != IGNORED).sum())
            correct += int((logits.argmax(-1) == targets).sum())
            rows += len(samples)
        return loss / weight, correct / rows if self.pooled else None

    def _held_out(self) -> Iterator[list[Sample]]:
        samples = [
            sample for client in self.clients for sample in client.door.truth(client.held_out)
        ]
        samples.sort(key=lambda sample: len(sample.ids))
        for start in range(0, len(samples), _EVALUATION_ROWS):
            yield samples[start : start + _EVALUATION_ROWS]
