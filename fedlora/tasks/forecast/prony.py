"""Going on with a series by a linear recurrence of its own past (Prony's method)."""

from __future__ import annotations

import torch


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
