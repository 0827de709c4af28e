"""The yardstick: the undivided model, trained with plain PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from peft import LoraConfig as PeftLoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from fedlora.server.compute.engine import SplitEngine
from fedlora.split import Checkpoint, model_folder
from simulations.bench.workload import Workload


class Baseline(Protocol):
    """Something that is timed beside the split run."""

    def step(self, number: int) -> float:
        """Run one optimiser step and return its mean loss."""


class Unsplit:
    """PEFT LoRA on the undivided model, with AdamW, on the batches that the clients draw.

    It starts from the engine's adapter, so that equal losses show that the work is the same. The
    model is in evaluation mode, as the engine's frozen blocks are: no dropout on either side.

    Parameters
    ----------
    workload
        What is trained.
    engine
        Whose initial adapter is used.

    Raises
    ------
    ValueError
        When PEFT adapts other modules than the engine does.
    """

    def __init__(self, workload: Workload, engine: SplitEngine) -> None:
        scenario, folder = workload.scenario, model_folder(workload.load.model)
        self._batches: Iterator[tuple[torch.Tensor, torch.Tensor]] = workload.batches(folder)
        self._head: nn.Module | None = None
        if workload.load.task == "causal_lm":
            base = AutoModelForCausalLM.from_pretrained(folder)
        else:
            options = {} if engine.blocks.family.causal else {"add_pooling_layer": False}
            base = AutoModel.from_pretrained(folder, **options)
            self._head = workload.task.head(
                Checkpoint(folder),
                torch.float32,
                engine.geometry.head_width,
                scenario.seed,
            )
        config = PeftLoraConfig(
            r=scenario.lora.r_max,
            lora_alpha=scenario.lora.alpha,
            target_modules="all-linear",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        )
        self._model = get_peft_model(base, config).eval()
        self._adopt(engine)
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        parameters += self._head.parameters() if self._head else []
        self._optimizer = torch.optim.AdamW(
            parameters, lr=scenario.train.lr, weight_decay=scenario.train.weight_decay
        )

    def step(self, number: int) -> float:
        """See ``Baseline``."""
        del number
        ids, classes = next(self._batches)
        if self._head is None:
            loss = self._model(input_ids=ids, labels=ids).loss
        else:
            states = self._model(input_ids=ids).last_hidden_state
            loss = nn.functional.cross_entropy(self._head(states.mean(1)), classes)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss)

    @torch.no_grad()
    def _adopt(self, engine: SplitEngine) -> None:
        base = self._model.get_base_model()
        undivided = getattr(base, base.base_model_prefix, base)
        layers = [m for m in undivided.modules() if isinstance(m, LoraLayer)]
        if len(layers) != len(engine.projections):
            raise ValueError(f"PEFT adapts {len(layers)} modules, not {len(engine.projections)}")
        for projection in engine.projections:
            layer = undivided.get_submodule(projection.name)
            layer.lora_A["default"].weight.copy_(projection.A)
            layer.lora_B["default"].weight.copy_(projection.B)
