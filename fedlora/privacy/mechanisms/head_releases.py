"""The few directions that a linear head can push in, and what a server that knows it computes.

A bare linear head W of K classes follows the cut, so the gradient of a sample's cross-entropy is
g = W^T u with u = p - y: the predicted probabilities minus the one-hot label. The components of u
sum to zero, so u has K - 1 coordinates a = V^T u in a fixed orthonormal basis V of such vectors.
Where W is public, that is where it has only ever been trained on released gradients, the server
computes from a release both the cut gradient and the head's own gradient, sum_i u_i z_i^T. Both are
post-processing, so a shared head costs nothing beyond the release. What is released differs:
``full``, ``row_space``, ``logits`` and ``labels``, one file each beside this one.

===================  ================================
``weight``           W, shape (K, d)
``zero_sum_basis``   V, shape (K, K - 1)
``row_space``        Q = M (M^T M)^(-1/2), M = W^T V
``z``                what the server sent, (rows, d)
===================  ================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

_RANK_TOLERANCE = 1e-6  # singular values below this fraction of the largest carry nothing

MOST_CLASSES = 1 << 12
"""Of a mechanism that holds ``zero_sum_basis``, 128 MiB then: a server names the classes."""


def zero_sum_basis(classes: int) -> torch.Tensor:
    """Return an orthonormal basis (Helmert's) of the vectors that sum to zero.

    Parameters
    ----------
    classes
        Number K of classes, at least 2.

    Returns
    -------
    torch.Tensor
        Shape (K, K - 1), float64.
    """
    return _basis(classes).clone()


@cache
def _basis(classes: int) -> torch.Tensor:
    """Make it once: a server asks at every answer of every client."""
    basis = torch.zeros(classes, classes - 1, dtype=torch.float64)
    for j in range(1, classes):
        basis[:j, j - 1] = 1 / math.sqrt(j * (j + 1))
        basis[j, j - 1] = -j / math.sqrt(j * (j + 1))
    return basis


@dataclass(frozen=True)
class RowSpaceBasis:
    """Orthonormal basis of a public head's row space, and what it was scaled by.

    Attributes
    ----------
    basis
        Q = M S^-1, shape (width, K - 1), where S = (M^T M)^(1/2).
    inverse
        S^-1, shape (K - 1, K - 1).
    """

    basis: torch.Tensor
    inverse: torch.Tensor


def row_space(weight: torch.Tensor) -> RowSpaceBasis:
    """Return the polar factor of M = W^T V, which unlike that of a QR has no free signs."""
    w = weight.detach().double()
    m = w.T @ zero_sum_basis(len(w)).to(w.device)
    squares, vectors = torch.linalg.eigh(m.T @ m)
    singular = squares.clamp(min=0).sqrt()
    kept = singular > _RANK_TOLERANCE * singular.max()
    scale = torch.where(kept, 1 / torch.where(kept, singular, 1.0), 0.0)
    inverse = (vectors * scale) @ vectors.T
    return RowSpaceBasis(m @ inverse, inverse)


def believed_labels(
    z: torch.Tensor, weight: torch.Tensor, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a public head's logits, and a label for each row that is drawn by its own belief."""
    logits = z.double() @ weight.T
    label = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator).squeeze(1)
    return logits, label
