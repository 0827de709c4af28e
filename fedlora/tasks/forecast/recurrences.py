"""What a channel forecast begins with: recurrences of a delay's own past, or the last step.

``go_on`` is each series' own (Prony's method), ``go_on_together`` one that neighbouring delays have
in common (the modified covariance method).
"""

from __future__ import annotations

import torch

from fedlora.config import ForecastConfig

_LONG = 8
_LOADING = 1e-4
_LEAST = 1e-12
_MOST_GROWTH = 2.0


def go_on(series: torch.Tensor, order: int, ahead: int) -> torch.Tensor:
    """Predict the next steps of complex series, each from itself alone.

    The known steps give the coefficients of a recurrence by least squares, which then goes on. Its
    roots beyond the unit circle are put onto it, as one that grows is no channel's. Applied to each
    delay of a channel response this is PAD without angles (Yin et al., IEEE JSAC 38(9), 2020).

    Parameters
    ----------
    series
        Complex, shape (..., steps), oldest first.
    order
        Steps that the next one is a combination of; below the known steps.
    ahead
        How many steps are predicted.

    Returns
    -------
    torch.Tensor
        Shape (..., ahead).
    """
    past = series.unfold(-1, order, 1)  # (..., places, order)
    known, following = past[..., :-1, :], series[..., order:, None]
    solved = torch.linalg.lstsq(known, following, driver="gelsd").solution.squeeze(-1)
    coefficients = _stable(solved)
    told = series[..., -order:]
    for _ in range(ahead):
        step = (told[..., -order:] * coefficients).sum(-1, keepdim=True)
        told = torch.cat([told, step], -1)
    return told[..., order:]


def _stable(coefficients: torch.Tensor) -> torch.Tensor:
    """Return the coefficients, oldest first, of the recurrence with no root beyond 1."""
    order = coefficients.shape[-1]
    companion = torch.zeros(*coefficients.shape, order, dtype=coefficients.dtype)
    companion[..., 0, :] = coefficients.flip(-1)
    companion[..., range(1, order), range(order - 1)] = 1
    roots = torch.linalg.eigvals(companion)
    roots = roots / roots.abs().clamp_min(1.0)
    polynomial = torch.ones_like(roots[..., :1])
    for place in range(order):  # multiply out (z - root)
        longer = torch.nn.functional.pad(polynomial, (0, 1))
        shifted = torch.nn.functional.pad(polynomial, (1, 0))
        polynomial = longer - roots[..., place : place + 1] * shifted
    return -polynomial[..., 1:].flip(-1)


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


def recurrence(taps: torch.Tensor, config: ForecastConfig) -> torch.Tensor:
    """Return what ``task.forecast.base`` predicts of complex delays (..., delays, steps).

    Returns
    -------
    torch.Tensor
        Shape (..., delays, horizon).
    """
    if config.base == "last":
        return _repeated(taps[..., -1:], config)
    if config.base == "pad":
        return go_on(taps, config.base_order, config.horizon)
    return go_on_together(taps, config.base_order, config.horizon, neighbours=1)


def recurrences(taps: torch.Tensor, config: ForecastConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return that, and what a second one predicts that errs otherwise.

    Beside the last step it is the mean of the known ones, which noise disturbs less and movement
    more; beside PAD a recurrence of a single step; beside ``covariance`` a longer one that more
    neighbours have in common, which noise disturbs less and different paths more.
    """
    first = recurrence(taps, config)
    if config.base == "last":
        return first, _repeated(taps.mean(-1, keepdim=True), config)
    if config.base == "pad":
        return first, go_on(taps, 1, config.horizon)
    order = min(_LONG, config.history // 2)
    return first, go_on_together(taps, order, config.horizon, neighbours=3)


def _repeated(step: torch.Tensor, config: ForecastConfig) -> torch.Tensor:
    """Return one step (..., 1) for all steps ahead."""
    return step.expand(*step.shape[:-1], config.horizon)
