"""A rank strategy whose choices are plain to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedlora.errors import shown
from fedlora.ranks import ClientReport, FedloraError, RankDecision, RankSpace, RankStrategy


class ByClient(RankStrategy):
    """The ranks of a list, dealt to the clients in turn.

    Parameters
    ----------
    ranks
        At least one; those above r_max stand for r_max.
    turn
        Whether they go on by one client each round.
    """

    def __init__(self, ranks: Sequence[int], turn: bool = False) -> None:
        if not isinstance(ranks, list | tuple) or not ranks:
            raise FedloraError(f"ranks.options.ranks is {shown(ranks)}; list whole numbers")
        self.ranks, self.turn = list(ranks), turn

    def rank(self, round: int, client: int) -> int:
        """Return the rank of a client in a round, from 1."""
        return int(self.ranks[(client + self.turn * round) % len(self.ranks)])

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Return each client's rank, the same at every projection."""
        return {
            client: RankDecision(space.uniform(min(self.rank(round, int(client)), space.r_max)))
            for client in clients
        }
