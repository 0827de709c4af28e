"""Normalisation layers of the output stage, for edge processes that do without transformers."""

from __future__ import annotations

import torch
from torch import nn


class RMSNorm(nn.Module):
    """Root-mean-square norm computed in fp32, as Llama and Gemma have it.

    Parameters
    ----------
    weight
        Gain, shape (width,).
    eps
        Added to the mean square.
    offset
        Added to the gain; Gemma stores the gain minus one.
    """

    def __init__(self, weight: torch.Tensor, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        wide = x.float()
        unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.offset:
            return (unit * (self.offset + self.weight.float())).to(x.dtype)
        return self.weight * unit.to(x.dtype)


def layer_norm(weight: torch.Tensor, bias: torch.Tensor, eps: float) -> nn.LayerNorm:
    """Return a frozen LayerNorm with these parameters."""
    norm = nn.LayerNorm(weight.shape[0], eps=eps)
    norm.weight = nn.Parameter(weight, requires_grad=False)
    norm.bias = nn.Parameter(bias, requires_grad=False)
    return norm
