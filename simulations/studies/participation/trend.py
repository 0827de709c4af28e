"""The trend of the loss that theory predicts for a number of participants a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares


@dataclass(frozen=True)
class Trend:
    """Loss after t rounds with n of N participants: ``floor + gap a^t + spread v(n) (1 - a^t)``.

    It is the recursion ``gap(t+1) = a gap(t) + (1 - a) spread v(n)`` of gradient descent with noisy
    gradients, as in the convergence bound of Wang, Zhou, Shi and Letaief (arXiv 2407.02924, in our
    reconstruction): what a round adds is forgiven by the factor ``a`` with every later round. The
    mean gradient of n clients that are drawn without replacement from N differs from that of all by
    the variance ``v(n) = (N - n) / (n (N - 1))``, in units of the clients' own; batch noise, which
    falls as 1/n as well, is a part of ``spread`` and ``floor``.

    Attributes
    ----------
    floor
        Loss in the end with all participants, in nats.
    gap
        Distance from it at the start, in nats.
    contraction
        The factor ``a``, between 0 and 1.
    spread
        What drawing one client a round adds in the end, in nats.
    clients
        N.
    """

    floor: float
    gap: float
    contraction: float
    spread: float
    clients: int

    def loss(self, rounds: np.ndarray, participants: int) -> np.ndarray:
        """Return the predicted loss after each number of rounds."""
        left = self.contraction ** np.asarray(rounds, float)
        drawn = self.spread * draw_variance(participants, self.clients)
        return np.asarray(self.floor + self.gap * left + drawn * (1 - left))


def draw_variance(participants: int, clients: int) -> float:
    """Return the variance of the mean of a draw without replacement, in units of one's own."""
    if clients == 1:
        return 0.0
    return (clients - participants) / (participants * (clients - 1))


def fit_trend(curves: Mapping[int, np.ndarray], clients: int) -> Trend:
    """Fit one trend to all curves at once by least squares.

    Parameters
    ----------
    curves
        By number of participants: mean held-out loss after round 1, 2, ..., of shape (rounds,).
    clients
        Number of clients to draw from.
    """
    last = min(float(curve.min()) for curve in curves.values())
    first = max(float(curve[0]) for curve in curves.values())

    def trend(values: np.ndarray) -> Trend:
        floor, gap, contraction, spread = map(float, values)
        return Trend(floor, gap, contraction, spread, clients)

    def misfit(values: np.ndarray) -> np.ndarray:
        model = trend(values)
        return np.concatenate(
            [
                model.loss(np.arange(1, len(curve) + 1), participants) - curve
                for participants, curve in curves.items()
            ]
        )

    start = (last, max(first - last, 1e-3), 0.8, 0.1)
    bounds = ([0, 0, 0.01, 0], [np.inf, np.inf, 0.9999, np.inf])
    return trend(least_squares(misfit, start, bounds=bounds).x)


def explained(trend: Trend, curves: Mapping[int, np.ndarray]) -> float:
    """Return the share of the curves' variance that the trend explains (R squared)."""
    found = np.concatenate(list(curves.values()))
    predicted = np.concatenate(
        [trend.loss(np.arange(1, len(curve) + 1), n) for n, curve in curves.items()]
    )
    return float(1 - np.sum((found - predicted) ** 2) / np.sum((found - found.mean()) ** 2))
