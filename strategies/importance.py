"""The budget of the channel, spread over the projections by their sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedlora.checks import number
from fedlora.ranks import (
    ClientOutcome,
    ClientReport,
    RankDecision,
    RankSpace,
    RankStrategy,
    fit_budget,
)
from strategies.training import TrainingRule


class Importance(RankStrategy):
    """Give more rank to the projections on which the loss depends more.

    The sensitivity of a projection is smoothed over rounds and multiplied by its smoothed
    uncertainty as in AdaLoRA (arXiv 2303.10512, eq. 9 to 11). A parameter's sensitivity, not a
    component's, weighs a projection, so that a wide projection is not preferred for its size. Until
    a sensitivity is known, and where all are 0 because B starts at 0, the spread is even.

    Under privacy a projection whose gradient is mostly noise has a large sensitivity for nothing.
    Where the signal-to-noise ratio is known, the sensitivity is multiplied by the part of the
    gradient's energy that is signal, SNR / (1 + SNR).

    Parameters
    ----------
    even
        Part of each weight that does not depend on the sensitivity: 1 spreads evenly, 0 follows the
        sensitivity alone.
    beta1, beta2
        Smoothing of the sensitivity and of its uncertainty over rounds.
    train, train_at_r_max
        Which ranks train; see ``TrainingRule``.
    """

    def __init__(
        self,
        even: float = 0.5,
        beta1: float = 0.85,
        beta2: float = 0.85,
        train_at_r_max: bool = False,
        *,
        train: str = "delivered",
    ) -> None:
        self.even = number("ranks.options.even", even, 0.0, 1.0)
        self.beta1 = number("ranks.options.beta1", beta1, 0.0, 1.0)
        self.beta2 = number("ranks.options.beta2", beta2, 0.0, 1.0)
        self.training = TrainingRule(train, train_at_r_max)
        self.sensitivity: np.ndarray | None = None
        self.uncertainty: np.ndarray | None = None

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Fill each client's budget in proportion to the weights."""
        weights = np.ones(len(space))
        if self.sensitivity is not None and self.uncertainty is not None:
            score = self.sensitivity * self.uncertainty
            if score.max() > 0:
                weights = self.even * weights + (1 - self.even) * score / score.mean()
        delivered = {
            client: fit_budget(space, report.budget_bits, weights)
            for client, report in clients.items()
        }
        return self.training.decide(round, clients, delivered, space)

    def observe(self, round: int, outcomes: Mapping[str, ClientOutcome]) -> None:
        """Smooth the sensitivity, averaged over the clients."""
        self.training.observe(outcomes)
        known = [_signal(o) for o in outcomes.values() if o.sensitivity is not None]
        if not known:
            return
        now = np.mean(known, axis=0)
        if self.sensitivity is None or self.uncertainty is None:
            self.sensitivity, self.uncertainty = np.zeros_like(now), np.zeros_like(now)
        self.sensitivity = self.beta1 * self.sensitivity + (1 - self.beta1) * now
        change = np.abs(now - self.sensitivity)
        self.uncertainty = self.beta2 * self.uncertainty + (1 - self.beta2) * change

    def state_dict(self) -> dict[str, Any]:
        """Return the smoothed sensitivity and uncertainty."""
        smoothed = {"sensitivity": self.sensitivity, "uncertainty": self.uncertainty}
        return smoothed | {"training": self.training.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.sensitivity = state["sensitivity"]
        self.uncertainty = state["uncertainty"]
        self.training.load_state_dict(state.get("training", {}))


def _signal(outcome: ClientOutcome) -> np.ndarray:
    """Return the sensitivity, without the part of it that is owed to privacy noise."""
    sensitivity = np.asarray(outcome.sensitivity)
    if outcome.gradient_snr is None:
        return sensitivity
    snr = np.asarray(outcome.gradient_snr)
    signal: np.ndarray = sensitivity * snr / (1 + snr)
    return signal
