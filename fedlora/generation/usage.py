"""What serving comes to: sessions, tokens, bits, air time and energy, by client and in all."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedlora.channel.channel import build_channel
from fedlora.channel.ledger import AirLedger
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.generation.server import GenerationServer
from fedlora.link import Frame, messages as m

log = logging.getLogger("fedlora.generation")

_RECENT_S = 10.0
_KEPT = 1024  # latest times of which medians are told


@dataclass
class _Row:
    """A session as its requests show it."""

    client: str
    opened_s: float
    position: int = 0
    tokens: int = 0
    last_s: float | None = None


@dataclass
class _Client:
    """One client's sums."""

    streams: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    exchanges: int = 0
    refused: int = 0
    bits_up: int = 0
    bits_down: int = 0
    wire_up: int = 0
    wire_down: int = 0


@dataclass
class _Times:
    """The latest times of a kind, in seconds."""

    kept: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def told(self) -> dict[str, float] | None:
        if not self.kept:
            return None
        ordered = sorted(self.kept)
        return {
            "median": statistics.median(ordered),
            "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        }


class Usage:
    """Counts what passes; may be called from as many threads as there are.

    A token is counted once it is known to be the client's: one an exchange, and the drafts that the
    next position shows to have been right. Air time and energy are those of the run's channel, in
    the round after its last; they are unknown where links are measured, and once a client asks that
    the channel has no link for.

    Parameters
    ----------
    scenario
        The run's.
    server
        Whose sessions are counted.
    clock
        Seconds, as ``time.monotonic`` gives them.
    """

    def __init__(
        self,
        scenario: Scenario,
        server: GenerationServer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server, self._clock = server, clock
        self._lock = threading.Lock()
        self._rows: dict[str, _Row] = {}
        self._clients: dict[str, _Client] = {}
        self._recent: deque[tuple[float, int]] = deque()
        self._first, self._between = _Times(), _Times()
        self._began = clock()
        self._channel = build_channel(scenario.channel, scenario.seed)
        self._air = AirLedger(self._channel)
        self._air.start_round(scenario.train.rounds)
        self._knows_air = not self._channel.measured

    def joined(self, client: str) -> None:
        """Count a stream of a client."""
        with self._lock:
            self._of(client).streams += 1

    def left(self, client: str) -> None:
        """Count a stream no more."""
        with self._lock:
            self._of(client).streams -= 1

    def note(self, request: Frame, answer: Frame, wire: tuple[int, int], began_s: float) -> None:
        """Count an exchange.

        Parameters
        ----------
        request, answer
            What was asked and answered.
        wire
            Bytes of the frames, up and down.
        began_s
            When the request came, by the clock.
        """
        with self._lock:
            own = self._of(request.client)
            own.exchanges += 1
            own.wire_up += wire[0]
            own.wire_down += wire[1]
            bits = request.bits("activation"), answer.bits("representation")
            own.bits_up += bits[0]
            own.bits_down += bits[1]
            number = int(request.client) if request.client.isdecimal() else 0
            if any(bits) and self._knows_air:
                self._book(number, bits, wire)
            if answer.kind == m.GEN_REFUSED:
                own.refused += 1
            elif answer.kind == m.GEN_OPENED:
                self._rows[answer.fields["session"]] = _Row(request.client, began_s)
            elif answer.kind == m.GEN_STATES and request.kind != m.GEN_REST:
                self._extended(own, request, began_s)

    def forget(self, session: str) -> None:
        """Take note that a session is over."""
        with self._lock:
            self._rows.pop(session, None)

    def evict(self) -> None:
        """Have sessions forgotten that nobody uses."""
        self._server.sessions.evict()

    def told(self) -> dict[str, Any]:
        """Return all figures, as JSON values."""
        with self._lock:
            now = self._clock()
            self._forget_old(now)
            sessions, bounds = self._server.sessions, self._server.sessions.bounds
            span_s = max(1e-3, min(_RECENT_S, now - self._began))
            air = self._air.totals() if self._knows_air else None
            sums = {
                name: sum(getattr(own, name) for own in self._clients.values())
                for name in _Client.__dataclass_fields__
            }
            tokens = max(1, sums["tokens"])
            totals = {
                **sums,
                "air_seconds": air and air["client_seconds"],
                "energy_joules": air and air["energy_joules"],
            }
            per_token = {
                "bits_up": sums["bits_up"] / tokens,
                "bits_down": sums["bits_down"] / tokens,
                "air_seconds": air and air["client_seconds"] / tokens,
                "energy_joules": air and air["energy_joules"] / tokens,
            }
            return {
                "seconds": now - self._began,
                "sessions": len(sessions),
                "streams": sums["streams"],
                "tokens_per_second": sum(n for _, n in self._recent) / span_s,
                "first_token_s": self._first.told(),
                "between_tokens_s": self._between.told(),
                "cache": {
                    "tokens": sessions.granted_tokens,
                    "most_tokens": bounds.tokens_in_all,
                    "bytes": sessions.held_bytes,
                },
                "forwards": self._server.scheduler.forwards,
                "totals": totals,
                "a_token": per_token if sums["tokens"] else None,
                "clients": {c: vars(own).copy() for c, own in sorted(self._clients.items())},
            }

    def _book(self, client: int, bits: tuple[int, int], wire: tuple[int, int]) -> None:
        """Book an exchange on the air; where the channel has no link for the client, none is."""
        try:
            self._air.book(client, "up", "activation", bits[0], wire[0])
            self._air.book(client, "down", "representation", bits[1], wire[1])
        except FedloraError as error:
            self._knows_air = False
            log.warning("air time and energy are not told from here on: %s", error)

    def _forget_old(self, now: float) -> None:
        """Keep the latest tokens alone: nobody may ask for speeds for days."""
        while self._recent and self._recent[0][0] < now - _RECENT_S:
            self._recent.popleft()

    def _of(self, client: str) -> _Client:
        return self._clients.setdefault(client, _Client())

    def _extended(self, own: _Client, request: Frame, began_s: float) -> None:
        """Count what an exchange brought, and which drafts of the last one were right."""
        row = self._rows.get(request.fields["session"])
        if row is None:
            return
        now, fields = self._clock(), request.fields
        position, tokens = fields["position"], fields["tokens"]
        brought = 1
        drafted = fields["last"] - 1
        if row.last_s is None or position == 0 or tokens - drafted > 1:  # a prompt, or a turn
            own.prompt_tokens += tokens
            self._first.kept.append(now - began_s)
        else:
            brought += min(max(0, position - row.position - 1), max(0, row.tokens - 1))
            self._between.kept.append((now - row.last_s) / brought)
        row.position, row.tokens, row.last_s = position + tokens - drafted - 1, drafted + 1, now
        own.tokens += brought
        self._recent.append((now, brought))
        self._forget_old(now)
