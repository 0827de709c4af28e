"""Send an adapter where it is worth it, without learning: the rule that a learner has to beat."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.checks import number, whole
from fedlora.ranks import (
    ClientReport,
    RankDecision,
    RankSpace,
    fit_budget,
)
from strategies.training import TrainedStrategy, TrainingRule, mean_rank


class Hold(TrainedStrategy):
    """Send the whole budget unless the client has a better adapter already.

    In a fade a client keeps what it has. What the budget pays is sent when its mean rank is no
    smaller than that of the client's adapter, or when that adapter is ``patience`` rounds old and
    the new one has at least ``least`` of its rank.

    Parameters
    ----------
    fraction
        Part of the budget to use.
    patience
        Rounds after which a smaller adapter is better than an old one.
    least
        Part of the held rank that the smaller one must have.
    train
        Which ranks train; see ``TrainingRule``. By default the rule of ``airllm``.
    """

    def __init__(
        self, fraction: float = 1.0, patience: int = 2, least: float = 0.5, train: str = "shared"
    ) -> None:
        self.fraction = number("ranks.options.fraction", fraction, 0.0, 1.0)
        self.patience = whole("ranks.options.patience", patience, 1, 10**9)
        self.least = number("ranks.options.least", least, 0.0, 1.0)
        self.training = TrainingRule(train, remember=True)

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Fill each client's budget, or leave it what it has."""
        delivered = {}
        for client, report in clients.items():
            budget = report.budget_bits
            ranks = fit_budget(space, None if budget is None else self.fraction * budget)
            held, rank = self.training.held(client), mean_rank(ranks, space)
            old = round - held.round >= self.patience and rank >= self.least * held.rank
            worth = rank >= held.rank or old
            delivered[client] = ranks if worth else space.uniform(space.r_min)
        return self.training.decide(round, clients, delivered, space)
