"""Random LoRA factors without a model around them."""

from __future__ import annotations

from typing import Any

import torch

from fedlora.lora.layers import LoraProjection

SIZES = [(6, 5), (4, 7)]  # d_in and d_out of each projection


def factors(r_max: int = 3) -> list[LoraProjection]:
    generator = torch.Generator().manual_seed(3)
    nothing: Any = None
    return [
        LoraProjection(
            f"layers.{layer}.proj",
            layer,
            d_in,
            d_out,
            torch.nn.Parameter(torch.randn(r_max, d_in, generator=generator)),
            torch.nn.Parameter(torch.randn(d_out, r_max, generator=generator)),
            nothing,
        )
        for layer, (d_in, d_out) in enumerate(SIZES)
    ]


def set_random_gradients(projections: list[LoraProjection], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for projection in projections:
        for factor in (projection.A, projection.B):
            factor.grad = torch.randn(factor.shape, generator=generator)


def values(projections: list[LoraProjection]) -> list[torch.Tensor]:
    return [f.detach().clone() for p in projections for f in (p.A, p.B)]
