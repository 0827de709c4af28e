"""What a device took part in, put together from its audit file and its running sessions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedlora.errors import FedloraError
from fedlora.site import audit
from fedlora.site.tally import going_on, left_behind
from fedlora.site.words import reason_text

Event = Mapping[str, Any]

GOING_ON: Final = "going on"
KILLED: Final = "its process was stopped or killed, or lost power"


@dataclass
class Session:
    """One invitation and what came of it.

    Attributes
    ----------
    name
        Of the session.
    asked, accepted, over
        Events; ``over`` is that of its end, or the refusal. None where there is none.
    rounds
        Events of its rounds, in order.
    counted
        What a running or killed session has counted since, see ``fedlora.site.tally``.
    state
        ``GOING_ON``, ``KILLED``, or how it ended.
    """

    name: str
    asked: Event = field(default_factory=dict)
    accepted: Event | None = None
    over: Event | None = None
    rounds: list[Event] = field(default_factory=list)
    counted: Event | None = None
    state: str = KILLED

    @property
    def _last(self) -> Event:
        told = [self.over, self.counted, *reversed(self.rounds)]
        return next((event for event in told if event and "left" in event), {})

    @property
    def left(self) -> Mapping[str, int]:
        """Bytes that left, by kind."""
        found: Mapping[str, int] = self._last.get("left", {})
        return found

    @property
    def round(self) -> int:
        """The last round that began."""
        return int(self._last.get("round", 0))

    @property
    def samples(self) -> int:
        """Samples that were computed since the run's start."""
        return int(self._last.get("samples", 0))

    @property
    def limit(self) -> Mapping[str, Any] | None:
        """The owner's limit in this session."""
        return (self.accepted or {}).get("limit")

    @property
    def ledgers(self) -> list[Mapping[str, Any]]:
        """What the ledger had booked at each event that says so, in order."""
        events = [self.accepted, *self.rounds, self.over]
        return [event["ledger"] for event in events if event and event.get("ledger")]

    def facts(self) -> dict[str, Any]:
        """Return the session as JSON values."""
        asked = {key: self.asked.get(key) for key in ("time", "client", "run", "name")}
        asked |= {key: self.asked.get(key) for key in ("scenario", "server", "wants")}
        took = {key: (self.accepted or {}).get(key) for key in ("data", "rows", "limit")}
        return {
            "session": self.name,
            **asked,
            "accepted": self.accepted is not None,
            **took,
            "rounds": self.rounds,
            "round": self.round,
            "samples": self.samples,
            "left": self.left,
            "ledger_before": self.ledgers[0] if self.ledgers else None,
            "ledger_after": self.ledgers[-1] if self.ledgers else None,
            "ended": (self.over or {}).get("time"),
            "state": self.state,
        }


@dataclass
class Texts:
    """The texts that a device wrote with servers' blocks.

    Attributes
    ----------
    begun, over
        How many were begun, and how many of these ended in order; the others were cut off.
    tokens
        That were sent for those that ended.
    left
        Bytes that left for them, by kind.
    """

    begun: int = 0
    over: int = 0
    tokens: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def take(self, event: Event) -> None:
        """Take in an event of a text."""
        if event["event"] == audit.TEXT:
            self.begun += 1
            return
        self.over += 1
        self.tokens += event["tokens"]
        self.left.update(event["left"])


@dataclass(frozen=True)
class History:
    """All that a device's audit file knows.

    Attributes
    ----------
    sessions
        In the order in which they were asked.
    lines, torn
        Lines of the file, and those that a crash or a full disk tore.
    texts
        What was written with servers' blocks.
    """

    sessions: Sequence[Session]
    lines: int
    torn: int
    texts: Texts


def read_history(folder: Path) -> History:
    """Read a device's ``state`` folder.

    Raises
    ------
    FedloraError
        When it holds no audit file, or one that was changed.
    """
    if not folder.is_dir():
        raise FedloraError(
            f"{folder} is no folder; name the one that state in the node configuration says "
            "(default ~/.fedlora/states)"
        )
    if not (folder / audit.NAME).is_file():
        raise FedloraError(
            f"{folder} holds no {audit.NAME}: no device with this state folder has been asked for "
            "anything; name the folder that state in the node configuration says"
        )
    running = going_on(folder)  # before the file, where a session that ends meanwhile will stand
    killed = left_behind(folder)
    found = audit.read(folder / audit.NAME)
    sessions, texts = dict[str, Session](), Texts()
    for event in found.events:
        if event["event"] in (audit.TEXT, audit.TEXT_OVER):
            texts.take(event)
            continue
        _take(sessions.setdefault(event["session"], Session(event["session"])), event)
    for session in sessions.values():
        if session.over is not None:
            session.state = reason_text(session.over)
            if session.over["event"] == audit.INTERRUPTED:
                session.state = KILLED
        elif session.name in running:
            session.counted, session.state = running[session.name], GOING_ON
        else:
            session.counted = killed.get(session.name)
    return History(list(sessions.values()), len(found.events) + found.torn, found.torn, texts)


def _take(session: Session, event: Event) -> None:
    match event["event"]:
        case audit.ASKED:
            session.asked = event
        case audit.ACCEPTED:
            session.accepted = event
        case audit.ROUND:
            session.rounds.append(event)
        case audit.ENDED | audit.REFUSED:
            session.over = event
        case audit.INTERRUPTED:
            session.over = session.over or event  # not where it ended just before it was killed
