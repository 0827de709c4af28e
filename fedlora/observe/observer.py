"""Who looks on while a run goes, and what a run's state is by its events and rounds."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, TypedDict

from fedlora.checks import finite
from fedlora.report import ClientRecord, PhaseProgress, RoundRecord


class ClientStatus(TypedDict, total=False):
    """One client at one moment.

    ``state`` is ``connected``, ``awaited`` (it owes an answer for seconds), ``late`` (the
    step went on without it) or ``lost``, ``reason`` why it is lost;
    ``last_seen`` the time of its last frame, in seconds since the epoch; ``misses`` the deadlines
    that it has missed in this round and the times it was lost in the run; ``wire_up`` and
    ``wire_down`` bytes since the run began; ``answer_seconds`` from the last request to its answer.
    """

    state: str
    reason: str
    last_seen: float | None
    misses: int
    wire_up: int
    wire_down: int
    answer_seconds: float | None


_SUMMED = ("air_seconds", "late_deliveries")


class RunState:
    """What is known of a run so far.

    Attributes
    ----------
    phase
        The present phase; None before the first.
    last
        The last finished round of training.
    clients
        What the server last knew of each client.
    """

    def __init__(self) -> None:
        self.phase: PhaseProgress | None = None
        self.last: RoundRecord = {}
        self.clients: Mapping[str, ClientStatus] = {}
        self._told: dict[int, dict[str, float]] = {}  # sums up to each round

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take in one event; see ``fedlora.report.progress``."""
        kind = event.get("event")
        if kind == "phase":
            self.phase = PhaseProgress(event)
        elif kind in ("step", "evaluation", "round"):
            if self.phase is None:  # in a folder whose beginning was lost
                self.phase = PhaseProgress({"name": event.get("phase", "train"), **event})
            self.phase.apply(event)

    def note_round(self, record: RoundRecord) -> None:
        """Take in a finished round; those behind it that are known are repeated after a resume."""
        number = int(finite(record.get("round")) or len(self._told) + 1)
        if number <= next(reversed(self._told), 0):  # they are in order
            self._told = {n: own for n, own in self._told.items() if n < number}
        before, clients = self._latest, (record.get("clients") or {}).values()
        now = {key: before.get(key, 0.0) + (finite(record.get(key)) or 0.0) for key in _SUMMED}
        spent = [e for c in clients if (e := finite(c.get("epsilon"))) is not None]
        if "epsilon" in before or spent:
            now["epsilon"] = max([before.get("epsilon", 0.0), *spent])
        self._told[number] = now
        self.last = record

    @property
    def rounds(self) -> int:
        """Finished rounds of training, those before a resume included."""
        return len(self._told)

    @property
    def totals(self) -> dict[str, float]:
        """Sums over finished rounds: ``air_seconds``, ``late_deliveries``."""
        return {key: self._latest.get(key, 0.0) for key in _SUMMED}

    def client_record(self, client: str) -> ClientRecord:
        """Return a client's part of the last round; empty when it had none."""
        return (self.last.get("clients") or {}).get(client, {})

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon that a client has spent, in whichever round; None without privacy."""
        return self._latest.get("epsilon")

    @property
    def _latest(self) -> Mapping[str, float]:
        """Sums, and the largest epsilon, up to the last round."""
        return self._told[next(reversed(self._told))] if self._told else {}


class Observer(ABC):  # noqa: B024 (both may be left as they are)
    """Looks on; what it does must not take long."""

    def on_event(self, state: RunState, event: Mapping[str, Any]) -> None:  # noqa: B027
        """Take note of an event, which the state holds already."""

    def on_round(self, state: RunState, record: RoundRecord) -> None:  # noqa: B027
        """Take note of a finished round, which the state holds already."""
