"""Frozen fp32 matrices, laid out in memory as oneDNN multiplies them fastest.

A plain matrix is laid out anew within each product. A frozen one can be laid out once: for x W^T
and, where a gradient goes back through it, another time for g W.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from fedlora.split.frozen_linear import FrozenLinear

log = logging.getLogger("fedlora.server")

BYTES = 4  # of a number: other precisions are not laid out
_SMALLEST = 1 << 16  # numbers of a matrix; with fewer a product gains less than its call costs


class PrepackedLinear(FrozenLinear):
    """A frozen linear layer whose matrix is laid out beforehand.

    Its parameter ``weight`` has shape and type of the matrix, and no numbers.

    Parameters
    ----------
    weight, bias
        Shapes (d_out, d_in) and (d_out,), fp32, on the CPU.
    trains
        Whether gradients go back through the layer, for which the matrix is kept twice.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, trains: bool) -> None:
        d_out, d_in = weight.shape
        super().__init__(d_in, d_out, bias=False, device="meta", dtype=weight.dtype)
        self.weight.requires_grad_(False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
        ways = (weight, weight.T) if trains else (weight,)
        self._ways = [_Way(_reordered(way), len(way)) for way in ways]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., d_in) to (..., d_out)."""
        x = input.reshape(-1, input.shape[-1])
        y = self._apply_way(x, 0, self.bias) if torch.is_grad_enabled() else self.product(x)
        return y.view(*input.shape[:-1], self.out_features)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """See ``FrozenLinear``."""
        with torch.no_grad():
            return _multiply(x, *self._ways[0], self.bias)

    def gradient(self, g: torch.Tensor) -> torch.Tensor:
        """See ``FrozenLinear``."""
        if torch.is_grad_enabled():
            return self._apply_way(g, 1, None)
        return _multiply(g, *self._ways[1])

    def _apply_way(self, x: torch.Tensor, way: int, bias: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = _Product.apply(x, self, way, bias)  # type: ignore[no-untyped-call]
        return y


class _Way(NamedTuple):
    """A matrix as it is multiplied with from the right, transposed, and its rows."""

    matrix: torch.Tensor
    rows: int


class _Product(torch.autograd.Function):
    """The product with a constant matrix, whose gradient is that with its transpose, and so on."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: PrepackedLinear, way: int, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.layer, ctx.way = layer, way
        return _multiply(x, *layer._ways[way], bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        back = ctx.layer._apply_way(gradients[0], 1 - ctx.way, None)
        return back, None, None, None


def _multiply(
    x: torch.Tensor, matrix: torch.Tensor, rows: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    if not len(x):
        return x.new_zeros(0, rows)
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, matrix, bias, "none", [], "")
    return y


def _reordered(matrix: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)
    return found


@cache
def can_prepack() -> bool:
    """Tell whether this torch lays matrices out beforehand, and then multiplies as ever."""
    x, weight = torch.linspace(-1, 1, 64).view(2, 32), torch.linspace(1, -1, 256).view(8, 32)
    try:
        layer = PrepackedLinear(weight, None, trains=True)
        there = (layer.product(x) - x @ weight.T).abs().max()
        back = (layer.gradient(x @ weight.T) - x @ weight.T @ weight).abs().max()
        sound = bool(there < 1e-4) and bool(back < 1e-3)
    except Exception as error:  # another build or processor, and whatever it makes of it
        log.debug("matrices are not laid out beforehand: %s", error)
        return False
    return sound


def to_prepack(
    matrices: Mapping[str, Sequence[int]], limit_bytes: int, *, trains: bool
) -> dict[str, int]:
    """Return which matrices are laid out beforehand, and the bytes that each takes then.

    All that are large enough for it to pay, or none where they would take more than the limit.

    Parameters
    ----------
    matrices
        Their shapes, by name.
    limit_bytes
        What they may take, as often as they are kept.
    trains
        See ``PrepackedLinear``.
    """
    sizes = {name: math.prod(shape) for name, shape in matrices.items()}
    found = {n: BYTES * (1 + trains) * size for n, size in sizes.items() if size >= _SMALLEST}
    if sum(found.values()) > limit_bytes or not can_prepack():
        return {}
    return found
