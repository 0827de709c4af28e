"""How much the loss depends on each projection's adapter, from the gradients of the steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlora.lora.layers import LoraProjection


class Sensitivity:
    """Each projection's mean of abs(w dL/dw): the importance of AdaLoRA (arXiv 2303.10512, eq. 8).

    Parameters
    ----------
    projections
        Adapted projections, in order.
    """

    def __init__(self, projections: Sequence[LoraProjection]) -> None:
        self._projections = projections
        self._forget()

    @torch.no_grad()
    def note(self) -> None:
        """Take in the gradients that the factors have now, as a step's."""
        for index, p in enumerate(self._projections):
            pairs = [(f, f.grad) for f in (p.A, p.B) if f.grad is not None]
            if pairs:
                total = sum(float((f * gradient).abs().sum()) for f, gradient in pairs)
                self._total[index] += total / sum(f.numel() for f, _ in pairs)
        self._steps += 1

    def take(self) -> list[float] | None:
        """Return the mean over the steps since the last call; None when there was none."""
        total, steps = self._total, self._steps
        self._forget()
        return (total / steps).tolist() if steps else None

    def _forget(self) -> None:
        self._total, self._steps = torch.zeros(len(self._projections)), 0
