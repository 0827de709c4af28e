"""An adapted projection as one step of autograd, in place of PEFT's eight.

PEFT's modules stay the owners of A and B. What changes is the order of the work: the low-rank
product is added into the base product, and its gradient into the base's, so that nothing as wide as
a layer's output is made twice.

| here | PEFT, LoRA (Hu et al. 2021) |
| --- | --- |
| ``x`` | x, the input |
| ``y`` | W x + b + s B (m * A x), the output |
| ``scale`` | s = alpha / r_max |
| ``mask`` | m, 1 for the first r components of a token's client |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedlora.lora.client_gradients import ClientGradients
from fedlora.lora.layers import ADAPTER, LoraProjection
from fedlora.lora.masks import RankMasks
from fedlora.split import FrozenLinear


def fuse(
    projections: Sequence[LoraProjection], masks: RankMasks, by_client: ClientGradients | None
) -> int:
    """Compute projections by ``FusedLora`` where it computes the same; return how many.

    Others stay PEFT's: those whose base weight is not here (``compute.device_map``), or is computed
    in another precision than the factors, and those whose input is dropped out before A.

    Parameters
    ----------
    projections
        Adapted projections, in order.
    masks
        Their rank masks.
    by_client
        Is told each client's own gradients; None: nobody is.
    """
    fused = 0
    for index, projection in enumerate(projections):
        module: Any = projection.module
        base = module.get_base_layer()
        if (
            (type(base) in (nn.Linear, Conv1D) or isinstance(base, FrozenLinear))
            and not hasattr(base, "_hf_hook")
            and getattr(base, "compute_dtype", base.weight.dtype) == projection.A.dtype
            and isinstance(module.lora_dropout[ADAPTER], nn.Identity)
        ):
            module.forward = FusedLora(index, projection, masks, by_client)
            fused += 1
    return fused


@dataclass(frozen=True)
class FusedLora:
    """What one projection computes.

    Attributes
    ----------
    index
        Its place among the projections.
    projection, masks, by_client
        See ``fuse``.
    """

    index: int
    projection: LoraProjection
    masks: RankMasks
    by_client: ClientGradients | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map the input (..., d_in) to the output (..., d_out)."""
        if self.masks.idle(self.index):  # nothing to be trained here, so nothing is kept for it
            return self.base(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        A, B = self.projection.A, self.projection.B
        rows = x.reshape(-1, x.shape[-1])
        y: torch.Tensor
        if torch.is_grad_enabled():
            y = _Fused.apply(rows, A, B, self)  # type: ignore[no-untyped-call]
        else:  # a step of autograd costs as much as a small product
            y, _, _ = self.product(rows, A, B)
        return y.view(*x.shape[:-1], -1)

    def product(
        self, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the output, (tokens, d_out), the components of the input, and their mask."""
        mask = self.masks.mask(self.index, x.dtype, x.device)
        y, h = self.base(x), self.shrink(x, A, mask)
        y.addmm_(h, B.T, alpha=self.scale)
        return y, h, mask

    @cached_property
    def layer(self) -> Any:
        """The frozen layer."""
        return self.projection.module.get_base_layer()

    @property
    def scale(self) -> float:
        """The factor of the low-rank product."""
        module: Any = self.projection.module
        return float(module.scaling[ADAPTER])

    def base(self, x: torch.Tensor) -> torch.Tensor:
        """Return the frozen layer's product, (tokens, d_out)."""
        layer = self.layer
        if isinstance(layer, FrozenLinear):
            return layer(x) if torch.is_grad_enabled() else layer.product(x)
        if isinstance(layer, Conv1D):
            return torch.addmm(layer.bias, x, layer.weight)
        return nn.functional.linear(x, layer.weight, layer.bias)

    def base_gradient(self, g: torch.Tensor) -> torch.Tensor:
        """Return the gradient at the frozen layer's input, (tokens, d_in)."""
        layer = self.layer
        if isinstance(layer, FrozenLinear):
            return layer.gradient(g)
        weight: torch.Tensor = layer.weight
        return g @ (weight.T if isinstance(layer, Conv1D) else weight)

    def shrink(self, x: torch.Tensor, A: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the components of the input, (tokens, r_max)."""
        h = _few_columns(A, x)
        return h if mask is None else h * mask

    def factor_gradient(self, place: int, narrow: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
        """Return narrow^T wide, (r_max, width); each client's own are told where they are asked."""
        own = self.by_client.add(2 * self.index + place, narrow, wide) if self.by_client else None
        return narrow.T @ wide if own is None else own.sum(0).to(wide.dtype)


def _few_columns(narrow: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """Return wide narrow^T, (tokens, r_max), for (r_max, width) and (tokens, width).

    As the transpose of narrow wide^T, which takes half as long: tokens make the long rows.
    """
    return (narrow @ wide.T).T


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, lora: FusedLora
    ) -> torch.Tensor:
        y, h, mask = lora.product(x, A, B)
        ctx.save_for_backward(x, A, B, h)
        ctx.lora, ctx.mask = lora, mask
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g,) = gradients
        x, A, B, h = ctx.saved_tensors
        lora, mask = ctx.lora, ctx.mask
        if torch.is_grad_enabled():  # to be differentiated again: h is a function of x and A
            h = lora.shrink(x, A, mask)
        u = _few_columns(B.T, g) * lora.scale
        u = u if mask is None else u * mask
        dx = None
        if ctx.needs_input_grad[0]:
            dx = lora.base_gradient(g).addmm_(u, A)
        return dx, lora.factor_gradient(0, u, x), lora.factor_gradient(1, h * lora.scale, g).T, None
