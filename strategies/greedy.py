"""The largest ranks that meet the deadline."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.checks import number, truth
from fedlora.ranks import (
    ClientReport,
    RankDecision,
    RankSpace,
    RankStrategy,
    fit_budget,
)


class Greedy(RankStrategy):
    """Use each client's budget to the last bit, spread evenly over the projections.

    Not one more rank of any projection would fit. Without a budget all ranks are r_max.

    Parameters
    ----------
    fraction
        Part of the budget to use; below 1 leaves a margin for a channel that turns out worse than
        reported.
    train_at_r_max
        Train all components and deliver those that fit, rather than train what is delivered.
    """

    def __init__(self, fraction: float = 1.0, train_at_r_max: bool = False) -> None:
        self.fraction = number("ranks.options.fraction", fraction, 0.0, 1.0)
        self.train_at_r_max = truth("ranks.options.train_at_r_max", train_at_r_max)

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Fill each client's budget."""
        decisions = {}
        for client, report in clients.items():
            budget = report.budget_bits
            ranks = fit_budget(space, None if budget is None else self.fraction * budget)
            train = space.uniform(space.r_max) if self.train_at_r_max else ranks
            decisions[client] = RankDecision(train, deliver=ranks)
        return decisions
