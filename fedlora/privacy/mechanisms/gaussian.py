"""Clip, add noise, round: what of a gradient leaves a client under privacy.

The Gaussian mechanism on each sample's cut-layer gradient g (Abadi et al. 2016, Section 3.1, here
for each sample on its own instead of the sum):

    released = round(g * min(1, C / ||g||_F) + s n),   n ~ N(0, 1),   s = sigma C

Floating point. Noise in fp32 would give the guarantee away: the set of sums that floating-point
numbers can reach depends on the gradient (Mironov 2012; Jin et al. 2022). The sum is therefore
formed in float64 and rounded to multiples of a step that is public and about 1000 times smaller
than s. Every multiple can be reached from every gradient, through about 2^40 float64 values of the
noise each, and rounding the exact mechanism's output costs no privacy. What remains is a
relative error of that order in each probability, and the noise's tail beyond 9.4 standard
deviations, which has a mass of 2^-64. Multiples of the step are exact in fp32, so the encoder sees
what was accounted for.

=============  ==========================================
``gradient``   g, packed rows of the samples
``clip_norm``  C
``sigma``      sigma = s / C
``step``       the grid that what is released lies on
=============  ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedlora.checks import positive
from fedlora.config import Unit
from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms.noise import NoiseSource

_SAFETY = 1 - 1e-9  # float64 rounding of norm and product stays far below it
_STEPS_PER_DEVIATION = 1024


@dataclass(frozen=True)
class Clipped:
    """Gradient whose samples (or tokens) have a norm of at most C.

    The two counts are facts about the data: they stay on the client.

    Attributes
    ----------
    values
        Packed gradient in float64, shape (rows, width).
    clipped
        Samples (or tokens) that were longer than C.
    refused
        Samples (or tokens) without a finite norm, which were replaced by zeros.
    """

    values: torch.Tensor
    clipped: int
    refused: int


@dataclass(frozen=True)
class Released:
    """Gradient that may leave, and the counts of ``Clipped`` that may not.

    Attributes
    ----------
    values
        Packed noised gradient in fp32, shape (rows, width).
    clipped, refused
        See ``Clipped``.
    """

    values: torch.Tensor
    clipped: int
    refused: int


def clip_rows(
    gradient: torch.Tensor, lengths: Sequence[int], clip_norm: float, unit: Unit = "sample"
) -> Clipped:
    """Scale each sample's gradient down to a Frobenius norm of at most ``clip_norm``.

    Parameters
    ----------
    gradient
        Packed gradient of the unreduced loss, shape (rows, width), any floating dtype; the rows of
        a sample follow each other and there is no padding.
    lengths
        Number of rows of each sample; they add up to the rows.
    clip_norm
        C, in the units of the gradient.
    unit
        Clip each ``sample`` over all its rows, or each row (``token``).

    Returns
    -------
    Clipped
        The clipped gradient. A sample whose norm is not finite becomes zero.

    Raises
    ------
    FedloraError
        When the lengths do not match the gradient or ``clip_norm`` is not positive.
    """
    positive("clip_norm", clip_norm)
    if gradient.dim() != 2 or any(n < 1 for n in lengths) or sum(lengths) != len(gradient):
        raise FedloraError(
            f"a gradient of shape {tuple(gradient.shape)} does not hold samples of "
            f"{list(lengths)[:8]} rows; pack the rows of all samples without padding"
        )
    values = gradient.detach().to("cpu", torch.float64, copy=True)
    norms = torch.linalg.vector_norm(values, dim=1)
    owner = torch.arange(len(values))
    if unit == "sample":
        owner = torch.repeat_interleave(torch.tensor(list(lengths), dtype=torch.int64))
        squares = torch.zeros(len(lengths), dtype=torch.float64)
        norms = squares.index_add_(0, owner, norms.square()).sqrt_()
    bad = ~norms.isfinite()
    scale = (clip_norm * _SAFETY / norms).clamp_(max=1.0)
    values.mul_(scale[owner, None])
    values[bad[owner]] = 0.0
    return Clipped(values, int(((scale < 1) & ~bad).sum()), int(bad.sum()))


def release(
    gradient: torch.Tensor,
    lengths: Sequence[int],
    *,
    clip_norm: float,
    sigma: float,
    noise: NoiseSource,
    unit: Unit = "sample",
) -> Released:
    """Return the clipped and noised gradient that may leave the client.

    Charge the ledger before, and send nothing when it refuses. Call it once for an upload: a
    retransmission sends the same bytes, a recomputed one is another upload.

    Parameters
    ----------
    gradient, lengths, clip_norm, unit
        See ``clip_rows``.
    sigma
        Standard deviation of the noise over ``clip_norm``.
    noise
        Source of the noise.

    Returns
    -------
    Released
        Multiples of ``rounding_step(sigma, clip_norm)``, in fp32 on the gradient's device.

    Raises
    ------
    FedloraError
        As ``clip_rows``, and when sigma is not positive.
    """
    positive("sigma", sigma)
    clipped = clip_rows(gradient, lengths, clip_norm, unit)
    step = rounding_step(sigma, clip_norm)
    values = noise.standard_normal(clipped.values.shape).mul_(sigma * clip_norm)
    values.add_(clipped.values).div_(step).round_().mul_(step)
    return Released(values.to(gradient.device, torch.float32), clipped.clipped, clipped.refused)


def release_sum(
    rows: torch.Tensor, *, clip_norm: float, sigma: float, noise: NoiseSource
) -> torch.Tensor:
    """Return a noised sum over records, of which each moves it by ``clip_norm`` at most.

    Charge the ledger for every record before, as for ``release``.

    Parameters
    ----------
    rows
        What each record adds, shape (records, numbers).
    clip_norm
        Largest norm of a row; longer ones are scaled down.
    sigma
        Standard deviation of the noise on each number over ``clip_norm``.
    noise
        Source of the noise.

    Returns
    -------
    torch.Tensor
        Shape (numbers,), float64, in multiples of ``rounding_step(sigma, clip_norm)``.
    """
    positive("sigma", sigma)
    total = clip_rows(rows, [1] * len(rows), clip_norm).values.sum(0)
    step = rounding_step(sigma, clip_norm)
    drawn = noise.standard_normal(total.shape).mul_(sigma * clip_norm)
    return drawn.add_(total).div_(step).round_().mul_(step)


def rounding_step(sigma: float, clip_norm: float) -> float:
    """Return the power of two, at most s / 1024, that releases are multiples of."""
    return float(2.0 ** math.floor(math.log2(sigma * clip_norm / _STEPS_PER_DEVIATION)))
