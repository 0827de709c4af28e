"""The yardstick: the undivided model, trained with plain PEFT."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from peft import LoraConfig as PeftLoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedlora.config import Scenario
from fedlora.server.compute import SplitEngine
from fedlora.split import Checkpoint, load_whole, model_folder
from fedlora.tasks import Task
from simulations.bench.workload import Workload


class Baseline(Protocol):
    """Something that is timed beside the split run."""

    def step(self, number: int) -> float:
        """Run one optimiser step and return its mean loss."""


class Undivided:
    """PEFT LoRA on the undivided model, with a fused AdamW, beginning with the engine's adapter.

    Equal losses then show that the work is the same. The model is in evaluation mode, as the
    engine's frozen blocks are: no dropout on either side.

    Parameters
    ----------
    scenario
        What is trained.
    task
        Makes the head of a pooled task.
    engine
        Whose initial adapter is used.

    Attributes
    ----------
    model
        The undivided model.
    head
        The head of a pooled task, or None.

    Raises
    ------
    ValueError
        When PEFT adapts other modules than the engine does.
    """

    def __init__(self, scenario: Scenario, task: Task, engine: SplitEngine) -> None:
        folder = model_folder(scenario.model.path)
        self.head: nn.Module | None = None
        if task.pooled:
            self.head = task.head(
                Checkpoint(folder), torch.float32, engine.geometry.head_width, scenario.seed
            )
        base = load_whole(folder, pooled=task.pooled)
        config = PeftLoraConfig(
            r=scenario.lora.r_max,
            lora_alpha=scenario.lora.alpha,
            target_modules=self._targets(base, engine),
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        )
        self.model = get_peft_model(base, config).eval()
        self._adopt(engine)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        parameters += self.head.parameters() if self.head else []
        self._optimizer = torch.optim.AdamW(
            parameters,
            lr=scenario.train.lr,
            weight_decay=scenario.train.weight_decay,
            fused=True,
        )

    def loss(self) -> torch.Tensor:
        """Return the mean loss of the next batch."""
        raise NotImplementedError

    def step(self, number: int) -> float:
        """See ``Baseline``."""
        del number
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss)

    @staticmethod
    def _targets(base: Any, engine: SplitEngine) -> list[str]:
        undivided = base.base_model
        start = next(name for name, module in base.named_modules() if module is undivided)
        return [f"{start}.{p.name}" if start else p.name for p in engine.projections]

    @torch.no_grad()
    def _adopt(self, engine: SplitEngine) -> None:
        base = self.model.get_base_model()
        undivided = getattr(base, base.base_model_prefix, base)
        layers = [m for m in undivided.modules() if isinstance(m, LoraLayer)]
        if len(layers) != len(engine.projections):
            raise ValueError(f"PEFT adapts {len(layers)} modules, not {len(engine.projections)}")
        for projection in engine.projections:
            layer = undivided.get_submodule(projection.name)
            layer.lora_A["default"].weight.copy_(projection.A)
            layer.lora_B["default"].weight.copy_(projection.B)


class Unsplit(Undivided):
    """On the batches of one length that the clients of a workload draw.

    Parameters
    ----------
    workload
        What is trained.
    engine
        Whose initial adapter is used.
    """

    def __init__(self, workload: Workload, engine: SplitEngine) -> None:
        super().__init__(workload.scenario, workload.task, engine)
        self._batches = workload.batches(model_folder(workload.load.model))

    def loss(self) -> torch.Tensor:
        """See ``Undivided``."""
        ids, classes = next(self._batches)
        if self.head is None:
            loss: torch.Tensor = self.model(input_ids=ids, labels=ids).loss
            return loss
        states = self.model(input_ids=ids).last_hidden_state
        return nn.functional.cross_entropy(self.head(states.mean(1)), classes)
