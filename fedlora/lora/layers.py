"""LoRA on the server's blocks through PEFT, with one view on all adapted projections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig as PeftLoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedlora.config import LoraConfig
from fedlora.lora.targets import choose_targets
from fedlora.split import Blocks

ADAPTER = "default"


@dataclass(frozen=True)
class LoraProjection:
    """One adapted matrix.

    Attributes
    ----------
    name
        Its name in the undivided base model.
    layer
        Number of its block in the undivided model.
    d_in, d_out
        Widths of its input and output.
    A, B
        The factors, shapes (r_max, d_in) and (d_out, r_max).
    module
        PEFT's layer.
    """

    name: str
    layer: int
    d_in: int
    d_out: int
    A: nn.Parameter
    B: nn.Parameter
    module: LoraLayer


def add_lora(blocks: Blocks, config: LoraConfig, seed: int) -> list[LoraProjection]:
    """Put LoRA layers of rank ``r_max`` on the target modules of the blocks.

    Parameters
    ----------
    blocks
        Frozen blocks; changed in place.
    config
        Rank, scaling and targets. The scale is alpha / r_max for every rank (AirLLM, section on
        parametrisation), so that a change of rank does not change the step size.
    seed
        Seeds the initial A; B starts at zero.

    Returns
    -------
    list of LoraProjection
        In the order of the model.

    Raises
    ------
    FedloraError
        When a target names no linear module of the blocks.
    """
    linear = linear_names(blocks)
    targets = [linear[name] for name in choose_targets(list(linear), config.targets)]
    peft_config = PeftLoraConfig(
        r=config.r_max,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in blocks.layers.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(peft_config, blocks.model, adapter_name=ADAPTER)
    for module in blocks.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return list(_projections(blocks))


def set_adapter_dropout(projections: Sequence[LoraProjection], training: bool) -> None:
    """Switch the adapters' dropout; the frozen backbone's own dropout always stays off."""
    for projection in projections:
        projection.module.lora_dropout.train(training)


def linear_names(blocks: Blocks) -> dict[str, str]:
    """Return the name of each linear module here by what the undivided base model calls it."""
    prefix = blocks.family.layers + "."
    here = [
        prefix + name
        for name, module in blocks.layers.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    return {blocks.original_name(name): name for name in here}


def _projections(blocks: Blocks) -> Iterator[LoraProjection]:
    for name, module in blocks.model.named_modules():
        if isinstance(module, LoraLayer):
            original = blocks.original_name(name)
            number = re.match(re.escape(blocks.family.layers) + r"\.(\d+)\.", original)
            assert number is not None
            A = module.lora_A[ADAPTER].weight
            B = module.lora_B[ADAPTER].weight
            yield LoraProjection(
                original, int(number.group(1)), A.shape[1], B.shape[0], A, B, module
            )
