"""Federations whose inputs are no tokens, and the undivided models that they have to equal."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel

from fedlora.config import Scenario, with_overrides
from fedlora.tasks import Sample
from support.federation import Federation
from support.unsplit import SampleStream

Loss = Callable[[nn.Module, torch.Tensor, Sequence[Sample]], torch.Tensor]
"""The unreduced loss of a head, the states (samples, places, width), and the samples."""


def scenario(model: Path, *overrides: str) -> Scenario:
    """Return a small scenario; the task, and where its records are, is for the overrides to say."""
    defaults = [
        f"model.path={model}",
        "data.holdout=0.2",
        "partition.min_rows=4",
        "federation.clients=2",
        "lora.r_max=3",
        "lora.alpha=6",
        "task.pool=mean",
        "task.max_length=16",
        "train.rounds=2",
        "train.steps=2",
        "train.batch_size=3",
        "train.lr=0.01",
        "evaluate.baseline=false",
        "compute.threads=1",
    ]
    return with_overrides(Scenario(), [*defaults, *overrides])


def without_tokenizer(source: Path, target: Path) -> Path:
    """Copy a checkpoint without what only texts need."""
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        (target / name).write_bytes((source / name).read_bytes())
    assert json.loads((target / "config.json").read_text())
    return target


class UnsplitValues:
    """Trains one undivided model with PEFT on what the clients of a federation train on.

    Parameters
    ----------
    federation
        Not yet run; heads are personal.
    loss
        Of the task, in plain torch.
    share
        How fronts are shared: ``personal``, ``round`` or ``step``.
    """

    def __init__(self, federation: Federation, loss: Loss, share: str = "personal") -> None:
        self.config, self.loss_of, self.share = federation.server.scenario, loss, share
        config, engine = self.config, federation.server.engine
        base = AutoModel.from_pretrained(config.model.path).eval()
        names = [p.name for p in engine.projections]
        lora = PeftLoraConfig(
            r=config.lora.r_max, lora_alpha=config.lora.alpha, target_modules=names
        )
        self.model: Any = get_peft_model(base, lora).eval()
        layers = [self.model.base_model.model.get_submodule(name) for name in names]
        self.factors = {
            f"{p.name}.{which}": getattr(layer, f"lora_{which}")["default"].weight
            for p, layer in zip(engine.projections, layers, strict=True)
            for which in "AB"
        }
        with torch.no_grad():
            for name, factor in engine.adapter().items():
                self.factors[name].copy_(factor)
        self.embed = federation.parts.model.task.embed
        self.fronts = [copy.deepcopy(c.model.front.embedding) for c in federation.clients]
        if share == "step":  # one front for all
            self.fronts = [self.fronts[0]] * len(self.fronts)
        self.heads = [copy.deepcopy(c.head.module) for c in federation.clients]
        self.batches = [
            SampleStream(c.door.truth(c.train), config.train.batch_size, config.seed, number)
            for number, c in enumerate(federation.clients)
        ]
        self.optimizers = [
            torch.optim.AdamW([p for p in part if p.requires_grad], weight_decay=0.0)
            for part in self._parts()
            if any(p.requires_grad for p in part)
        ]

    def _parts(self) -> list[list[nn.Parameter]]:
        fronts = self.fronts[:1] if self.share == "step" else self.fronts
        ends = [list(module.parameters()) for module in (*fronts, *self.heads)]
        return [list(self.factors.values()), *ends]

    def run(self) -> list[float]:
        """Train for all steps; return the mean loss of each."""
        losses, train = [], self.config.train
        for number in range(train.total_steps):
            losses.append(self.step(1 - number / train.total_steps))
            if self.share == "round" and (number + 1) % train.steps == 0:
                self._average([list(front.parameters()) for front in self.fronts])
        return losses

    def step(self, rate: float) -> float:
        rows, total = 0, 0.0
        for stream, front, head in zip(self.batches, self.fronts, self.heads, strict=True):
            samples = stream.next()
            e = self.embed(front, samples).reshape(len(samples), samples[0].length, -1)
            loss = self.loss_of(head, self.model(inputs_embeds=e).last_hidden_state, samples)
            loss.backward()
            rows, total = rows + len(samples), total + loss.item()
            for module in (head, *([] if self.share == "step" else [front])):
                self._divide(list(module.parameters()), len(samples))
        common = [*self.factors.values()]
        common += list(self.fronts[0].parameters()) if self.share == "step" else []
        self._divide(common, rows)
        if self.config.train.clip_norm:
            nn.utils.clip_grad_norm_(common, self.config.train.clip_norm)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate * self.config.train.lr
            optimizer.step()
            optimizer.zero_grad()
        return total / rows

    @staticmethod
    def _divide(parameters: Sequence[nn.Parameter], count: int) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= count

    @torch.no_grad()
    def _average(self, clients: Sequence[Sequence[nn.Parameter]]) -> None:
        sizes = [stream.batch_size for stream in self.batches]
        for same in zip(*clients, strict=True):
            mean = sum(p * (n / sum(sizes)) for p, n in zip(same, sizes, strict=True))
            for parameter in same:
                parameter.copy_(mean)
