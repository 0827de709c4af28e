"""Going on with delays by recurrences that neighbours have in common."""

from __future__ import annotations

import torch

_LOADING = 1e-4
_LEAST = 1e-12
_MOST_GROWTH = 2.0


def go_on_together(taps: torch.Tensor, order: int, ahead: int, neighbours: int) -> torch.Tensor:
    """Predict the next steps of complex delays, each by a recurrence that its neighbours fit, too.

    The modified covariance method (Marple, IEEE Trans. ASSP 28(4), 1980): the recurrence has to
    predict the known steps forwards, and conjugated backwards, with the least squared error. Here
    its equations are those of a delay and of some on either side, as one path that falls between
    two delays is in all of them with the same Doppler shift: noise, which differs, averages out.

    Parameters
    ----------
    taps
        Complex, shape (..., delays, steps), oldest first; delays are a circle, as a transform's.
    order
        Steps that the next one is a combination of; below the known steps.
    ahead
        How many steps are predicted.
    neighbours
        On either side.

    Returns
    -------
    torch.Tensor
        Shape (..., delays, ahead); no step is above twice the largest known one of its delay.
    """
    rows = taps.unfold(-1, order + 1, 1)  # (..., delays, equations, order + 1)
    both = torch.cat([rows, rows.flip(-1).conj()], -2)
    known, following = both[..., :-1], both[..., -1:]
    square = _over_neighbours(known.mH @ known, neighbours)
    across = _over_neighbours(known.mH @ following, neighbours)
    loading = _LOADING * square.diagonal(dim1=-2, dim2=-1).real.mean(-1) + _LEAST
    square = square + loading[..., None, None] * torch.eye(order, dtype=square.dtype)
    coefficients = torch.linalg.solve(square, across).squeeze(-1)
    most = _MOST_GROWTH * taps.abs().amax(-1, keepdim=True)
    told = taps[..., -order:]
    for _ in range(ahead):
        step = (told[..., -order:] * coefficients).sum(-1, keepdim=True)
        size = step.abs()
        step = step * torch.where(size > most, most / size.clamp_min(_LEAST), 1.0)
        told = torch.cat([told, step], -1)
    return told[..., order:]


def _over_neighbours(equations: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Add up matrices (..., delays, n, m) over those around each delay."""
    found = equations
    for distance in range(1, neighbours + 1):
        found = found + equations.roll(distance, -3) + equations.roll(-distance, -3)
    return found
