"""What the server knows of each client at this moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fedlora.observe.status import ClientStatus
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.member import BookFrame


@dataclass
class _Seen:
    last: float | None = None
    asked: float | None = None
    answer_seconds: float | None = None
    wire_up: int = 0
    wire_down: int = 0


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

    def _status(self, client: str, cohort: Cohort) -> ClientStatus:
        seen = self._seen.get(client, _Seen())
        status = ClientStatus(
            state="late" if client in cohort.late else "connected" if client in cohort else "lost",
            last_seen=seen.last,
            misses=cohort.times_lost[client] + cohort.misses[client],
            wire_up=seen.wire_up,
            wire_down=seen.wire_down,
            answer_seconds=seen.answer_seconds,
        )
        if client not in cohort:
            status["reason"] = cohort.lost.get(client, "")
        return status
