"""The same rank for every projection of every client, whatever the channel."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.ranks import (
    ClientReport,
    FedloraError,
    RankDecision,
    RankSpace,
    RankVector,
)
from strategies.training import TrainedStrategy, TrainingRule


class Uniform(TrainedStrategy):
    """Give everybody rank ``r``, or r_max if ``r`` is left out.

    Parameters
    ----------
    r
        The rank that everybody is sent.
    train
        Which ranks train; see ``TrainingRule``.
    """

    def __init__(self, r: int | None = None, train: str = "delivered") -> None:
        self.r = r
        self.training = TrainingRule(train)

    def prepare(self, space: RankSpace) -> None:
        """Refuse an ``r`` that the space does not allow."""
        try:
            self._ranks(space)
        except FedloraError as error:
            raise FedloraError(f"ranks.options.r: {error}") from None

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Send all the same ranks."""
        delivered = dict.fromkeys(clients, self._ranks(space))
        return self.training.decide(round, clients, delivered, space)

    def _ranks(self, space: RankSpace) -> RankVector:
        return space.uniform(space.r_max if self.r is None else self.r)
