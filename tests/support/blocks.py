"""Blocks on two random rows: what comes out, and all gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlora.lora.layers import LoraProjection
from fedlora.split import Blocks

LENGTHS = [5, 4]


def gradients(
    blocks: Blocks, projections: Sequence[LoraProjection], idle: Sequence[int] = ()
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the output, and the gradients at the input and at factors, those idle left out."""
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for projection in projections:
            projection.B.normal_(std=0.1, generator=drawn)
    x = torch.randn(sum(LENGTHS), blocks.width, generator=drawn, requires_grad=True)
    y = blocks(x, LENGTHS)
    used = [p for number, p in enumerate(projections) if number not in idle]
    factors = [factor for p in used for factor in (p.A, p.B)]
    return y, list(torch.autograd.grad(y.square().sum(), [x, *factors]))
