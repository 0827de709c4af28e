"""Schedulers that do not look at the channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedlora.channel.schedule.base import ClientLoad, Scheduler
from fedlora.channel.state import ChannelState
from fedlora.channel.streams import Stream, stream
from fedlora.checks import whole


class AllClients(Scheduler):
    """Everybody takes part."""

    def select(
        self, round: int, reports: Mapping[int, ChannelState], loads: Mapping[int, ClientLoad]
    ) -> dict[int, float]:
        """Return all clients with their bandwidth in Hz."""
        del loads
        return self.share(self.foresee(round, sorted(reports)), reports)

    def foresee(self, round: int, clients: Sequence[int]) -> list[int]:
        """Return all."""
        del round
        return list(clients)


class RandomClients(Scheduler):
    """As many clients as are asked for, drawn anew each round.

    Parameters
    ----------
    rounds, seed, total_bandwidth_hz
        See ``Scheduler``.
    clients
        Clients of a round; all, if fewer are there.
    """

    def __init__(
        self, *, rounds: int, seed: int, total_bandwidth_hz: float = 0.0, clients: int
    ) -> None:
        super().__init__(rounds=rounds, seed=seed, total_bandwidth_hz=total_bandwidth_hz)
        self._clients = whole("channel.schedule.options.clients", clients, 1, 100_000)

    def select(
        self, round: int, reports: Mapping[int, ChannelState], loads: Mapping[int, ClientLoad]
    ) -> dict[int, float]:
        """Return the drawn clients with their bandwidth in Hz."""
        del loads
        return self.share(self.foresee(round, sorted(reports)), reports)

    def foresee(self, round: int, clients: Sequence[int]) -> list[int]:
        """Return the drawn clients."""
        order = stream(self.seed, Stream.SCHEDULE, round).permutation(sorted(clients))
        return sorted(int(client) for client in order[: self._clients])
