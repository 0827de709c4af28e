"""The largest ranks that meet the deadline."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.checks import number, whole
from fedlora.ranks import (
    ClientReport,
    RankDecision,
    RankSpace,
    fit_budget,
)
from strategies.training import TrainedStrategy, TrainingRule


class Greedy(TrainedStrategy):
    """Use each client's budget to the last bit, spread evenly over the projections.

    Not one more rank of any projection would fit. Without a budget all ranks are r_max.

    Parameters
    ----------
    fraction
        Part of the budget to use; below 1 leaves a margin for a channel that turns out worse than
        reported.
    every
        Send in every so many rounds only, beginning with the first: clients keep what they have in
        between.
    train, train_at_r_max
        Which ranks train; see ``TrainingRule``.
    """

    def __init__(
        self,
        fraction: float = 1.0,
        train_at_r_max: bool = False,
        *,
        every: int = 1,
        train: str = "delivered",
    ) -> None:
        self.fraction = number("ranks.options.fraction", fraction, 0.0, 1.0)
        self.every = whole("ranks.options.every", every, 1, 10**9)
        self.training = TrainingRule(train, train_at_r_max)

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Fill each client's budget, or send nothing."""
        delivered = {client: space.uniform(space.r_min) for client in clients}
        if (round - 1) % self.every == 0:
            for client, report in clients.items():
                budget = report.budget_bits
                spent = None if budget is None else self.fraction * budget
                delivered[client] = fit_budget(space, spent)
        return self.training.decide(round, clients, delivered, space)
