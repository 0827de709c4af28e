"""The largest ranks that meet the deadline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora.checks import number, whole
from fedlora.ranks import (
    ClientOutcome,
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
        between. Where no adapter is due in such a round (``channel.deliver_every``), the next in
        which one is takes its place.
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
        self._sent = 0  # the last round in which adapters were sent
        self._sends = self._over_air = False

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Fill each client's budget, or send nothing."""
        delivered = {client: space.uniform(space.r_min) for client in clients}
        self._over_air = any(report.budget_bits is not None for report in clients.values())
        self._sends = not self._sent or round - self._sent >= self.every
        if self._sends:
            for client, report in clients.items():
                budget = report.budget_bits
                spent = None if budget is None else self.fraction * budget
                delivered[client] = fit_budget(space, spent)
        return self.training.decide(round, clients, delivered, space)

    def observe(self, round: int, outcomes: Mapping[str, ClientOutcome]) -> None:
        """Note when adapters were sent."""
        super().observe(round, outcomes)
        due = any(outcome.delivered is not None for outcome in outcomes.values())
        if self._sends and (due or not self._over_air):
            self._sent = round

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule remembers, and when adapters were sent."""
        own = {"sent": self._sent} if self.every > 1 else {}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        super().load_state_dict({name: value for name, value in state.items() if name != "sent"})
        self._sent = int(state.get("sent", 0))
