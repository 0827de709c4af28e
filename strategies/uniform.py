"""The same rank for every projection of every client, whatever the channel."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.ranks import ClientReport, FedloraError, RankDecision, RankSpace, RankStrategy


class Uniform(RankStrategy):
    """Give everybody rank ``r``, or r_max if ``r`` is left out."""

    def __init__(self, r: int | None = None) -> None:
        self.r = r

    def prepare(self, space: RankSpace) -> None:
        """Refuse an ``r`` that the space does not allow."""
        try:
            self._decision(space)
        except FedloraError as error:
            raise FedloraError(f"ranks.options.r: {error}") from None

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Return the same decision for all."""
        return dict.fromkeys(clients, self._decision(space))

    def _decision(self, space: RankSpace) -> RankDecision:
        return RankDecision(space.uniform(space.r_max if self.r is None else self.r))
