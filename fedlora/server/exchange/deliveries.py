"""Which adapter each client has, where adapters come over the air."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedlora.ranks import RankDecision, RankSpace
from fedlora.server.air import Air
from fedlora.server.compute import AdapterState, SplitEngine
from fedlora.server.exchange.cohort import Cohort


class Deliveries:
    """Sends adapters, and knows what last arrived.

    Parameters
    ----------
    engine
        Has the adapter.
    cohort
        The connected clients.
    air
        Says what is due and what arrives.
    space
        Says what ranks cost.

    Attributes
    ----------
    held
        For each client the adapter that it has and its ranks; nothing where none has arrived yet.
    """

    def __init__(self, engine: SplitEngine, cohort: Cohort, air: Air, space: RankSpace) -> None:
        self._engine = engine
        self._cohort = cohort
        self._air = air
        self._space = space
        self.held: dict[str, tuple[AdapterState, Sequence[int]]] = {}

    def send(self, round_: int, decisions: Mapping[str, RankDecision]) -> None:
        """Send the adapters; a client that is late or is sent none keeps the one it has."""
        if not self._air.delivers(round_):
            return
        state: AdapterState | None = None
        for client, decision in decisions.items():
            bits = self._space.bits(decision.deliver)
            if not bits or client not in self._cohort:
                continue  # rank 0 everywhere sends nothing, so there is nothing to replace
            if self._air.deliver(client, bits):
                state = state or self._engine.adapter()  # one copy for all who get it now
                self.held[client] = (state, decision.deliver)

    def in_use(
        self, decisions: Mapping[str, RankDecision]
    ) -> tuple[dict[str, Sequence[int]], dict[str, AdapterState]]:
        """Return the ranks that each connected client works at, and the adapters of their own.

        Where nothing comes over the air, a client has the present adapter at the ranks decided. Who
        never received one over the air works with the bare backbone.
        """
        clients = self._cohort.clients
        ranks: dict[str, Sequence[int]]
        if not self._air.enabled:
            ranks = dict.fromkeys(clients, self._engine.full_ranks())
            return ranks | {c: list(own.deliver) for c, own in decisions.items()}, {}
        ranks = dict.fromkeys(clients, self._engine.zero_ranks())
        ranks |= {client: list(own) for client, (_, own) in self.held.items()}
        return ranks, {client: state for client, (state, _) in self.held.items()}
