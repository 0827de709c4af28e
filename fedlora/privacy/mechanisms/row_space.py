"""``row_space``: the gradient's coordinates in the few directions that a public head can push in.

Exact, since g = Q Q^T g; the noise has K - 1 dimensions instead of d. See ``head_releases``.
"""

from __future__ import annotations

import torch

from fedlora.privacy.mechanisms.base import Gradients, Mechanism
from fedlora.privacy.mechanisms.head_releases import MOST_CLASSES, row_space, zero_sum_basis


def row_space_coordinates(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the coordinates of cut gradients in the row space of a public head.

    Parameters
    ----------
    gradient
        Shape (samples, width).
    weight
        The head's weight W, shape (classes, width).

    Returns
    -------
    torch.Tensor
        Shape (samples, classes - 1), float64; no longer than the gradient.
    """
    return gradient.double() @ row_space(weight).basis


class RowSpace(Mechanism):
    """Clips and noises each sample's K - 1 coordinates, anew at each upload."""

    needs_head = True
    most_classes = MOST_CLASSES

    def values(self, gradient: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """See ``Mechanism``."""
        assert weight is not None
        return row_space_coordinates(gradient, weight)

    def width(self, classes: int, width: int) -> int:
        """See ``Mechanism``."""
        del width
        return classes - 1

    def cut(self, message: torch.Tensor, weight: torch.Tensor | None, width: int) -> torch.Tensor:
        """See ``Mechanism``."""
        del width
        assert weight is not None
        return message @ row_space(weight).basis.T

    def gradients(
        self, uploaded: torch.Tensor, z: torch.Tensor, weight: torch.Tensor | None, sigma: float
    ) -> Gradients:
        """See ``Mechanism``; the head's gradient follows from the coordinates at once."""
        del sigma
        assert weight is not None
        w, message = weight.detach().double(), uploaded.double()
        space = row_space(w)
        u = message @ space.inverse @ zero_sum_basis(len(w)).to(w.device).T
        return Gradients((message @ space.basis.T).float(), (u.T @ z.double()).float())

    def probe(
        self,
        z: torch.Tensor,
        weight: torch.Tensor | None,
        sigma: float,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor | None:
        """See ``Mechanism``."""
        if weight is None:
            return None
        drawn = torch.randn(len(z), len(weight) - 1, generator=generator, dtype=torch.float64)
        return (sigma * self.policy.clip_norm * drawn @ row_space(weight).basis.T).float()
