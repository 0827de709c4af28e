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
    wide
        Whether the gain is applied in fp32 as well, before the result is cast, as in OLMo 2.
    """

    def __init__(
        self, weight: torch.Tensor, eps: float, offset: float = 0.0, *, wide: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps
        self.offset = offset
        self.wide = wide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        wide = x.float()
        unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.offset or self.wide:
            return (unit * (self.offset + self.weight.float())).to(x.dtype)
        return self.weight * unit.to(x.dtype)


def layer_norm(
    width: int, eps: float, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> nn.LayerNorm:
    """Return a frozen LayerNorm of these parameters; one that has none normalises alone."""
    norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None:
            setattr(norm, name, nn.Parameter(values, requires_grad=False))
    return norm
