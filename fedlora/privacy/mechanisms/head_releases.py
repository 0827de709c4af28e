"""Releasing a gradient where it lives: in the few directions that a linear head can push in.

A bare linear head W of K classes follows the cut, so the gradient of a sample's cross-entropy is
g = W^T u with u = p - y: the predicted probabilities minus the one-hot label. The components of u
sum to zero, so u has K - 1 coordinates a = V^T u in a fixed orthonormal basis V of such vectors.
Where W is public, that is where it has only ever been trained on released gradients, the server
computes from a release both the cut gradient and the head's own gradient, sum_i u_i z_i^T. Both are
post-processing, so a shared head costs nothing beyond the release. Three releases are noised (the
fourth, ``labels``, is in ``fedlora.privacy.mechanisms.randomised_response``):

``full``
    g in all d dimensions, clipped and noised there.
``row_space``
    the coordinates of g in the orthonormal basis Q = M (M^T M)^(-1/2) of the row space, M = W^T V.
    Exact, since g = Q Q^T g; the noise has K - 1 dimensions instead of d.
``logits``
    of u only the label is private: the server has sent z and knows W, hence p. So the client
    releases the label alone, as the corner of a simplex whose corners are 2C apart; nothing is
    clipped, whatever the server sends. The message does not depend on the step. It is noised and
    paid once for each sample, and repeated afterwards, whereas fresh noise in each of T passes
    would have to be sqrt(T) times larger. The server takes the gradient of the likelihood of what
    it received, -log sum_k p_k N(received; corner_k, s^2 I), by the logits: p - q, where q is the
    posterior of the label. It goes to p - y as the noise goes to zero.

===================  ================================
``weight``           W, shape (K, d)
``zero_sum_basis``   V, shape (K, K - 1)
``row_space_basis``  Q, shape (d, K - 1)
``label_corners``    the simplex, shape (K, K - 1)
``z``                what the server sent, (rows, d)
===================  ================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fedlora.config import Release

_RANK_TOLERANCE = 1e-6  # singular values below this fraction of the largest carry nothing


@dataclass(frozen=True)
class HeadGradients:
    """What the server computes from a release.

    Attributes
    ----------
    cut
        Gradient at the cut, shape (samples, width).
    head
        Gradient of the unreduced loss by the head's weight, shape (classes, width).
    """

    cut: torch.Tensor
    head: torch.Tensor


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
    basis = torch.zeros(classes, classes - 1, dtype=torch.float64)
    for j in range(1, classes):
        basis[:j, j - 1] = 1 / math.sqrt(j * (j + 1))
        basis[j, j - 1] = -j / math.sqrt(j * (j + 1))
    return basis


def label_corners(classes: int, clip_norm: float) -> torch.Tensor:
    """Return what each label is released as: K points that are all 2C apart.

    Parameters
    ----------
    classes
        Number K of classes.
    clip_norm
        C; any two samples' messages differ by at most 2C, as clipped gradients do.

    Returns
    -------
    torch.Tensor
        Shape (K, K - 1), float64.
    """
    return zero_sum_basis(classes) * (math.sqrt(2.0) * clip_norm)


def label_reach(classes: int) -> float:
    """Return the norm of ``label_corners`` over C: from 1 for two classes towards sqrt(2)."""
    return math.sqrt(2 * (classes - 1) / classes)


def release_width(release: Release, classes: int, width: int) -> int:
    """Return how many numbers a sample uploads."""
    return width if release in ("full", "labels") else classes - 1


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
    return gradient.double() @ _row_space(weight).basis


def head_gradients(
    release: Release,
    uploaded: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    *,
    clip_norm: float,
    sigma: float,
) -> HeadGradients:
    """Compute the gradients of the cut and of a public head from a release.

    Parameters
    ----------
    release
        What was released.
    uploaded
        As it arrived, shape (samples, ``release_width``).
    z
        Representations that the head was given, shape (samples, width).
    weight
        The head's weight W, shape (classes, width).
    clip_norm, sigma
        Of the mechanism; they matter for ``logits`` alone.
    """
    w, x, message = weight.detach().double(), z.double(), uploaded.double()
    basis = zero_sum_basis(len(w)).to(w.device)
    if release == "logits":
        corners = label_corners(len(w), clip_norm).to(w.device)
        logits = x @ w.T
        # the corners have equal norms, so their distances differ by the inner product alone
        evidence = message @ corners.T / (sigma * clip_norm) ** 2
        u = torch.softmax(logits, -1) - torch.softmax(logits + evidence, -1)
        cut = u @ w
    else:
        space = _row_space(w)
        coordinates = message if release == "row_space" else message @ space.basis
        u = coordinates @ space.inverse @ basis.T
        cut = message if release == "full" else message @ space.basis.T
    return HeadGradients(cut.float(), (u.T @ x).float())


def row_space_basis(weight: torch.Tensor) -> torch.Tensor:
    """Return the orthonormal basis Q of a public head's row space, shape (width, classes - 1)."""
    return _row_space(weight).basis


@dataclass(frozen=True)
class _RowSpace:
    """Basis Q = M S^-1, shape (width, K - 1), and S^-1, where S = (M^T M)^(1/2)."""

    basis: torch.Tensor
    inverse: torch.Tensor


def _row_space(weight: torch.Tensor) -> _RowSpace:
    """Return the polar factor of M = W^T V, which unlike that of a QR has no free signs."""
    w = weight.detach().double()
    m = w.T @ zero_sum_basis(len(w)).to(w.device)
    squares, vectors = torch.linalg.eigh(m.T @ m)
    singular = squares.clamp(min=0).sqrt()
    kept = singular > _RANK_TOLERANCE * singular.max()
    scale = torch.where(kept, 1 / torch.where(kept, singular, 1.0), 0.0)
    inverse = (vectors * scale) @ vectors.T
    return _RowSpace(m @ inverse, inverse)
