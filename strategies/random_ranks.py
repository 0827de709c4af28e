"""Random ranks: the baseline that a strategy must beat at equal cost."""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import numpy as np

from fedlora.checks import truth
from fedlora.ranks import (
    ClientReport,
    RankDecision,
    RankSpace,
    fit_budget,
)
from strategies.options import check_seed
from strategies.training import TrainedStrategy, TrainingRule


class RandomRanks(TrainedStrategy):
    """Spread each client's budget over the projections at random, anew in every round.

    Parameters
    ----------
    seed
        Of the draw; a client's ranks depend on the seed, the round and its identifier only.
    within_budget
        False draws each rank uniformly from r_min to r_max instead, whatever it costs.
    train
        Which ranks train; see ``TrainingRule``.
    """

    def __init__(self, seed: int = 0, within_budget: bool = True, train: str = "delivered") -> None:
        self.seed = check_seed(seed)
        self.within_budget = truth("ranks.options.within_budget", within_budget)
        self.training = TrainingRule(train)

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Draw ranks for each client."""
        delivered = {}
        for client, report in clients.items():
            generator = np.random.default_rng([self.seed, round, crc32(client.encode())])
            if self.within_budget:
                weights = generator.exponential(size=len(space))
                ranks = fit_budget(space, report.budget_bits, weights)
            else:
                ranks = space.vector(generator.integers(space.r_min, space.r_max + 1, len(space)))
            delivered[client] = ranks
        return self.training.decide(round, clients, delivered, space)
