"""A contextual bandit that learns which part of the budget is worth using."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from typing import Any
from zlib import crc32

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
from strategies.options import check_numbers, check_seed
from strategies.training import TrainingRule


class Bandit(RankStrategy):
    """Linear Thompson sampling over fractions of the budget (Agrawal and Goyal, ICML 2013).

    The reward of a delivery is its gain minus ``price`` times the fraction. The gain is the fall of
    the client's held-out loss, standardised over what was seen so far, so that a loss that falls
    for everybody is no merit of a fraction. Where losses are not known, it is the logarithm of the
    delivered mean rank, and 0 for a late delivery: the bandit then learns how much of a reported
    budget holds. Each fraction has a linear model of its reward, since lateness sets in at once
    and not in proportion to the fraction; the context is (1, budget, token surprisal).

    Parameters
    ----------
    seed
        Of the sampling.
    fractions
        Parts of the budget to choose from.
    price
        Reward that a whole budget costs.
    exploration
        Standard deviation of the reward's noise; larger explores more.
    discount
        Weight of the past after each round, below 1 since training changes the rewards.
    train, train_at_r_max
        Which ranks train; see ``TrainingRule``.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        fractions: Sequence[float] = (0.25, 0.5, 0.7, 0.85, 1.0),
        price: float = 0.1,
        exploration: float = 0.3,
        discount: float = 0.99,
        train: str = "delivered",
        train_at_r_max: bool = False,
    ) -> None:
        self.seed = check_seed(seed)
        self.fractions = check_numbers("fractions", fractions, 0.0, 1.0)
        self.price = number("ranks.options.price", price, 0.0, 1e6)
        self.exploration = number("ranks.options.exploration", exploration, 0.0, 1e6)
        self.discount = number("ranks.options.discount", discount, 1e-6, 1.0)
        self.training = TrainingRule(train, train_at_r_max)
        self.precision = np.tile(np.eye(3), (len(self.fractions), 1, 1))
        self.response = np.zeros((len(self.fractions), 3))
        self.drops = np.zeros(3)  # discounted count, sum and sum of squares of loss drops
        self.pending: dict[str, dict[str, Any]] = {}

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Choose each client's fraction by one draw from the posterior, and fill it evenly."""
        covariance = np.linalg.inv(self.precision)
        mean = np.einsum("aij,aj->ai", covariance, self.response)
        factor = np.linalg.cholesky(covariance)
        largest_bits = space.bits(space.uniform(space.r_max))
        self.pending = {}
        delivered = {}
        for client, report in clients.items():
            budget = largest_bits if report.budget_bits is None else report.budget_bits
            context = _context(_coverage(space.r_max * budget / largest_bits, space), report)
            generator = np.random.default_rng([self.seed, round, crc32(client.encode())])
            noise = np.einsum("aij,aj->ai", factor, generator.standard_normal(mean.shape))
            arm = int(np.argmax((mean + self.exploration * noise) @ context))
            ranks = fit_budget(space, self.fractions[arm] * min(budget, largest_bits))
            coverage = _coverage(ranks.mean, space)
            self.pending[client] = {"arm": arm, "context": context, "coverage": coverage}
            delivered[client] = ranks
        return self.training.decide(round, clients, delivered, space)

    def observe(self, round: int, outcomes: Mapping[str, ClientOutcome]) -> None:
        """Update the posterior with the rewards of this round's deliveries."""
        self.training.observe(outcomes)
        self.precision = self.discount * self.precision + (1 - self.discount) * np.eye(3)
        self.response = self.discount * self.response
        drops = [o.loss_drop for o in outcomes.values() if o.loss_drop is not None]
        self.drops = self.discount * self.drops + [len(drops), sum(drops), np.dot(drops, drops)]
        for client, outcome in outcomes.items():
            if outcome.delivered is not None and client in self.pending:
                choice = self.pending[client]
                arm, context = choice["arm"], np.array(choice["context"])
                gain = self._gain(outcome, choice["coverage"])
                self.precision[arm] += np.outer(context, context)
                self.response[arm] += (gain - self.price * self.fractions[arm]) * context
        self.pending = {}

    def _gain(self, outcome: ClientOutcome, coverage: float) -> float:
        if outcome.loss_drop is None:
            return coverage if outcome.delivered else 0.0
        count, total, squares = self.drops
        spread = np.sqrt(max(squares / count - (total / count) ** 2, 0.0))
        return float(np.clip((outcome.loss_drop - total / count) / (spread + 1e-9), -2, 2))

    def state_dict(self) -> dict[str, Any]:
        """Return the posterior and the choices whose outcome is not known yet."""
        return {
            "precision": self.precision,
            "response": self.response,
            "drops": self.drops,
            "pending": self.pending,
            "training": self.training.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.precision, self.response = state["precision"], state["response"]
        self.drops, self.pending = state["drops"], state["pending"]
        self.training.load_state_dict(state.get("training", {}))


def _coverage(mean_rank: float, space: RankSpace) -> float:
    return log2(1 + mean_rank) / log2(1 + space.r_max)


def _context(coverage: float, report: ClientReport) -> list[float]:
    statistics = report.statistics
    surprisal = statistics.token_surprisal if statistics is not None else None
    return [1.0, coverage, (surprisal or 0.0) / 16]
