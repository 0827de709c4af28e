"""What every scheduler has in common."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedlora import registry
from fedlora.blame import blaming
from fedlora.channel.state import ChannelState
from fedlora.checks import positive
from fedlora.config import ScheduleConfig
from fedlora.errors import FedloraError, shown

_ROUNDING = 1e-6  # relative


@dataclass(frozen=True)
class ClientLoad:
    """What a round would ask of a client.

    Attributes
    ----------
    up_bits, down_bits
        What it would send and receive in the round, in bits.
    compute_s
        Time that it would compute, in seconds; 0 in a run, which models the air alone.
    """

    up_bits: float
    down_bits: float
    compute_s: float = 0.0


class Scheduler(ABC):
    """Chooses the clients of each round and divides the bandwidth among them.

    A scheduler is built as ``Scheduler(rounds=..., seed=..., total_bandwidth_hz=..., **options)``.

    Parameters
    ----------
    rounds
        Rounds of the run.
    seed
        The run's seed, 0 or more.
    total_bandwidth_hz
        Bandwidth to divide in each direction, in Hz; 0 where the scenario does not set it.
    """

    def __init__(self, *, rounds: int, seed: int, total_bandwidth_hz: float = 0.0) -> None:
        self.rounds = rounds
        self.seed = seed
        self.total_bandwidth_hz = total_bandwidth_hz

    @abstractmethod
    def select(
        self,
        round: int,
        reports: Mapping[int, ChannelState],
        loads: Mapping[int, ClientLoad],
    ) -> dict[int, float]:
        """Return the clients of a round, each with its bandwidth in Hz.

        One at least, of those that are given, and no more than ``total_bandwidth_hz`` together
        where that is set. What is kept from round to round belongs into ``state_dict``, and draws
        come from ``stream(self.seed, Stream.SCHEDULE, round)``, so that a resumed run chooses the
        same; ``fedlora.channel.schedule.check.check_scheduler`` tries all this.

        Parameters
        ----------
        round
            Index of the round, from 0.
        reports
            What each client that could take part reports of its channel, one client at least; their
            order says nothing.
        loads
            What the round would ask of each of them.
        """

    def foresee(self, round: int, clients: Sequence[int]) -> list[int] | None:
        """Return whom ``select`` will choose of these clients, whatever they report.

        None, as here, where that depends on their reports.
        """
        del round, clients
        return None

    def observe(self, round: int, delay_s: float) -> None:  # noqa: B027  # stateless ones need none
        """Learn how long a round took, in seconds: its slowest client's modelled air time."""

    def state_dict(self) -> dict[str, Any]:
        """Return what ``select`` and ``observe`` have changed, as a table that JSON can hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # likewise
        """Take up what ``state_dict`` returned."""

    def share(self, clients: list[int], reports: Mapping[int, ChannelState]) -> dict[int, float]:
        """Return equal parts of the total bandwidth, or where none is set each client's own."""
        if not self.total_bandwidth_hz:
            return {client: reports[client].bandwidth_hz for client in clients}
        return dict.fromkeys(clients, self.total_bandwidth_hz / max(len(clients), 1))


def division_of(
    scheduler: Scheduler,
    round: int,
    reports: Mapping[int, ChannelState],
    loads: Mapping[int, ClientLoad],
    total_hz: float,
    what: str,
) -> dict[int, float]:
    """Return whom a scheduler chooses of those that report, and the bandwidth of each in Hz.

    Parameters
    ----------
    scheduler, round, reports, loads
        See ``Scheduler.select``.
    total_hz
        What the scenario gives it to divide, in Hz; 0 where it sets none.
    what
        How a sentence names it.

    Raises
    ------
    FedloraError
        When it chooses nobody, divides more than there is, or answers anything else.
    """
    with blaming(what, type(scheduler)):
        division: object = scheduler.select(round, dict(reports), dict(loads))
    return checked_division(division, round, reports, total_hz, what)


def checked_division(
    division: object,
    round: int,
    reports: Mapping[int, ChannelState],
    total_hz: float,
    what: str,
) -> dict[int, float]:
    """Return what of a scheduler's answer is for those that report; see ``division_of``."""
    if not isinstance(division, Mapping):
        raise FedloraError(
            f"{what} returns a {type(division).__name__} from select(); expected a dict of Hz by "
            "client"
        )
    if not division.keys() & reports.keys():
        raise FedloraError(
            f"{what} chose none of {len(reports)} clients for round {round + 1}; let it choose "
            "one at least"
        )
    given = {
        client: positive(f"what {what} gives client {client}, in Hz,", hz)
        for client, hz in division.items()
        if client in reports
    }
    divided_hz = math.fsum(given.values())
    if total_hz and divided_hz > total_hz * (1 + _ROUNDING):
        raise FedloraError(
            f"{what} divides {divided_hz:g} Hz among {len(given)} clients, and "
            f"channel.schedule.total_bandwidth_hz is {total_hz:g}; let the parts add up to that at "
            "most, as self.share() does"
        )
    return given


def foreseen(
    scheduler: Scheduler, round: int, clients: Sequence[int], what: str
) -> list[int] | None:
    """Return whom a scheduler will choose of some clients; see ``Scheduler.foresee``.

    Raises
    ------
    FedloraError
        When it answers anything else than some of them, or None.
    """
    with blaming(what, type(scheduler)):
        found: object = scheduler.foresee(round, list(clients))
    if found is None:
        return None
    named: list[int] = found if isinstance(found, list) else []
    with contextlib.suppress(TypeError):  # what has no hash is no client
        if len(set(named)) == len(named) > 0 and set(named) <= set(clients):
            return named
    raise FedloraError(
        f"{what} returns {shown(found)} from foresee(); expected a list of some of the clients "
        "that it is given, each once, or None"
    )


def build_scheduler(config: ScheduleConfig, *, rounds: int, seed: int) -> Scheduler:
    """Return the scheduler that a scenario names.

    Raises
    ------
    FedloraError
        When it is unknown or its options are wrong.
    """
    cls = registry.resolve("schedulers", config.scheduler, Scheduler)
    common = {
        "rounds": rounds,
        "seed": seed,
        "total_bandwidth_hz": config.total_bandwidth_hz,
    }
    made: Scheduler = registry.make(cls, "channel.schedule.options", config.options, **common)
    return made
