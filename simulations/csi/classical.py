"""Predictors without a network: last value, autoregression, PAD, and common recurrences."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedlora.tasks.forecast import go_on, go_on_together
from simulations.csi.metrics import responses
from simulations.csi.windows import Windows


def last_value(windows: Windows) -> torch.Tensor:
    """Repeat the last known step; in units of the data."""
    return windows.known()[:, -1:].expand_as(windows.ahead)


@dataclass(frozen=True)
class Autoregression:
    """One linear map from the known steps to the next ones, the same for all features.

    Sites need not share measurements for the fit to all of them: sums of products are all that it
    takes, ``history^2 + history x horizon`` numbers a site, once.

    Attributes
    ----------
    weight
        Shape (history, horizon), of normalised numbers.
    """

    weight: torch.Tensor

    @classmethod
    def fit(cls, parts: list[Windows], ridge: float = 1e-2) -> Autoregression:
        """Fit by least squares to several sites' samples, through what each would send.

        Parameters
        ----------
        parts
            Samples of each.
        ridge
            Added to the covariance of normalised histories, whose diagonal is 1.
        """
        sums = [_moments(part) for part in parts]
        count = sum(number for _, _, number in sums)
        square = torch.stack([own for own, _, _ in sums]).sum(0) / count
        cross = torch.stack([own for _, own, _ in sums]).sum(0) / count
        return cls(torch.linalg.solve(square + ridge * torch.eye(len(square)).double(), cross))

    def __call__(self, windows: Windows) -> torch.Tensor:
        """Predict, in units of the data."""
        predicted = torch.einsum("nhf,hk->nkf", windows.history.double(), self.weight)
        return windows.in_units(predicted.float())


def _moments(part: Windows) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the sums of products of known steps, with the next ones, and of how many."""
    known = part.history.double().transpose(1, 2).flatten(0, 1)
    ahead = ((part.ahead - part.mean) / part.scale).double().transpose(1, 2).flatten(0, 1)
    return known.T @ known, known.T @ ahead, len(known)


def prony(windows: Windows, order: int = 8) -> torch.Tensor:
    """Predict each delay by linear recurrences of its own past (PAD; Yin et al., JSAC 38(9), 2020).

    Responses over subcarriers are taken to delays; in each the known steps give the coefficients of
    a recurrence by least squares (Prony), which then goes on. There is one antenna a sample, so
    there are delays alone and no angles. Roots outside the unit circle are put onto it, as a
    recurrence that grows is no channel's.

    Parameters
    ----------
    windows
        Samples of channels.
    order
        Past steps of the recurrence; LLM4CP takes 8 of 16.

    Returns
    -------
    torch.Tensor
        In units of the data.
    """
    return _of_taps(go_on(_taps(windows), order, windows.ahead.shape[1]))


def covariance(windows: Windows, order: int = 5) -> torch.Tensor:
    """Predict each delay by a recurrence that its neighbours fit, too; see ``go_on_together``.

    Parameters
    ----------
    windows
        Samples of channels.
    order
        Past steps of the recurrence.

    Returns
    -------
    torch.Tensor
        In units of the data.
    """
    return _of_taps(go_on_together(_taps(windows), order, windows.ahead.shape[1], neighbours=1))


def _taps(windows: Windows) -> torch.Tensor:
    """Return the delays of histories in units of the data, shape (samples, delays, steps)."""
    taps: torch.Tensor = torch.fft.ifft(responses(windows.known()), dim=-1)
    return taps.transpose(1, 2)


def _of_taps(taps: torch.Tensor) -> torch.Tensor:
    """Return features (samples, steps, features) of delays."""
    ahead = torch.fft.fft(taps.transpose(1, 2), dim=-1)
    return torch.cat([ahead.real, ahead.imag], -1).float()
