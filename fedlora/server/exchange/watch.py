"""What the server knows of each client at this moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fedlora.observe.observer import ClientStatus
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.member import BookFrame


@dataclass
class _Seen:
    last: float | None = None
    asked: float | None = None
    answer_seconds: float | None = None
    wire_up: int = 0
    wire_down: int = 0


_AWAITED_S = 3.0
"""A client that owes an answer for longer is shown as waited for."""


class Watch:
    """Stands between the cohort and the air's ledger, and notes when frames came.

    Parameters
    ----------
    book
        Where every frame is booked.
    clock
        Time in seconds since the epoch.
    """

    def __init__(self, book: BookFrame, clock: Callable[[], float] = time.time) -> None:
        self._book = book
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def book(
        self, client: str, direction: str, tensors: Mapping[str, torch.Tensor], wire_bytes: int
    ) -> None:
        """Note a frame and pass it on."""
        seen, now = self._seen.setdefault(client, _Seen()), self._clock()
        if direction == "up":
            seen.last = now
            seen.wire_up += wire_bytes
            seen.answer_seconds = None if seen.asked is None else now - seen.asked
        else:
            seen.asked = now
            seen.wire_down += wire_bytes
        self._book(client, direction, tensors, wire_bytes)

    def snapshot(self, cohort: Cohort) -> dict[str, ClientStatus]:
        """Return every client that has taken part or failed to."""
        clients = dict.fromkeys([*cohort.clients, *cohort.lost])
        return {client: self._status(client, cohort) for client in clients}

    def _state(self, client: str, seen: _Seen, cohort: Cohort) -> str:
        if client in cohort.late:
            return "late"
        if client not in cohort:
            return "lost"
        owes = seen.asked is not None and (seen.last is None or seen.last < seen.asked)
        waited_s = self._clock() - seen.asked if owes and seen.asked is not None else 0.0
        return "awaited" if waited_s > _AWAITED_S else "connected"

    def _status(self, client: str, cohort: Cohort) -> ClientStatus:
        seen = self._seen.get(client, _Seen())
        status = ClientStatus(
            state=self._state(client, seen, cohort),
            last_seen=seen.last,
            misses=cohort.times_lost[client] + cohort.misses[client],
            wire_up=seen.wire_up,
            wire_down=seen.wire_down,
            answer_seconds=seen.answer_seconds,
        )
        if client not in cohort:
            status["reason"] = cohort.lost.get(client, "")
        return status
