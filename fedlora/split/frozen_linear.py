"""Linear layers of frozen blocks: which there are, and layers of our own in their place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class FrozenLinear(nn.Linear):
    """A linear layer that keeps its frozen matrix in a form of its own."""

    @abstractmethod
    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of (rows, d_in), (rows, d_out); autograd takes it for a constant."""

    @abstractmethod
    def gradient(self, g: torch.Tensor) -> torch.Tensor:
        """Return the gradient at the input, (rows, d_in), given that at the output."""


def linear_names(model: nn.Module) -> Iterator[str]:
    """Yield the names of the linear modules; those of GPT-2 are ``Conv1D``, stored by input."""
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            yield name


def replace_linear(model: nn.Module, name: str, layer: nn.Linear) -> None:
    """Put a layer in the place of a linear module, inside of its LoRA layer if it has one."""
    module: Any = model.get_submodule(name)
    if hasattr(module, "base_layer"):
        module.base_layer = layer
        return
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)
