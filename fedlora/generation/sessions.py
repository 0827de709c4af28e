"""The sessions of all clients: whose each is, what it holds, when it is forgotten."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fedlora.errors import shown
from fedlora.generation.bounds import CacheBounds, GenerationRefused
from fedlora.generation.pages import RowPages, pages_for

_LEAVES_S = 30.0  # for which room is waited that a session gives back when its forward is over


@dataclass(eq=False)
class Session:
    """One row that a client has the blocks continue.

    Its keys and values are of one client, one adapter and one rank vector; nobody else's request
    reaches them.

    Attributes
    ----------
    name
        What the client calls it by, drawn at random.
    client
        Whose it is.
    adapter
        Version of the adapter that made its keys and values.
    ranks
        Rank of each projection that made them.
    pages
        Keys and values.
    asked_s
        Time of the last request, by the sessions' clock.
    busy
        Whether a request is being computed.
    over
        Whether it was closed meanwhile: it counts until the request has ended, which is soon.
    """

    name: str
    client: str
    adapter: str
    ranks: tuple[int, ...]
    pages: RowPages
    asked_s: float
    busy: bool = False
    over: bool = False
    granted: int = field(default=0, repr=False)


class Sessions:
    """All open sessions within their bounds.

    Parameters
    ----------
    bounds
        The most that they may hold.
    clock
        Seconds, as ``time.monotonic`` gives them.
    new_row
        Makes what keeps a row, given the tokens of a page.
    """

    def __init__(
        self,
        bounds: CacheBounds,
        clock: Callable[[], float] = time.monotonic,
        new_row: Callable[[int], RowPages] = RowPages,
    ) -> None:
        self.bounds, self._new_row = bounds, new_row
        self._clock = clock
        self._lock = threading.Condition()
        self._open: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def granted_tokens(self) -> int:
        """Tokens that all sessions have been granted, in whole pages."""
        return sum(session.granted for session in list(self._open.values()))

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(session.pages.held_bytes for session in list(self._open.values()))

    def open(self, client: str, adapter: str, ranks: tuple[int, ...]) -> Session:
        """Open a session.

        Raises
        ------
        GenerationRefused
            When the client has too many.
        """
        with self._lock:
            self._evict()
            self._await(lambda: self._has_place(client))
            own = self._of(client)
            if len(own) >= self.bounds.sessions_per_client:
                raise GenerationRefused(
                    "full",
                    f"client {shown(client)} has {len(own)} sessions open, of "
                    f"{self.bounds.sessions_per_client}; close one",
                )
            pages = self._new_row(self.bounds.page_tokens)
            session = Session(
                secrets.token_hex(16), client, adapter, ranks, pages, asked_s=self._clock()
            )
            self._open[session.name] = session
            return session

    def begin(
        self, name: str, client: str, adapter: str, position: int | None, new: int
    ) -> Session:
        """Return a client's session for a request, with room for its new tokens.

        Parameters
        ----------
        name, client
            Which session, and who asks.
        adapter
            The present adapter's version.
        position
            Tokens that are kept of it; the rest is rolled back. None keeps all.
        new
            Tokens to come.

        Raises
        ------
        GenerationRefused
            When the client has no such session, another adapter made it, another request of it is
            going on, the position is beyond its end, or there is no room. It is left as it was.
        """
        with self._lock:
            self._evict(besides=name)
            self._await(lambda: self._has_room(name, position, new))
            session = self._open.get(name)
            if session is None or session.client != client or session.over:
                raise GenerationRefused(
                    "gone",
                    f"client {shown(client)} has no session {shown(name)}: it was closed, or not "
                    f"used for {self.bounds.idle_s:g} s; open another and send its tokens again",
                )
            if session.adapter != adapter:
                raise GenerationRefused(
                    "gone",
                    f"session {name} was computed with adapter {session.adapter[:12]}, and the "
                    f"server has {adapter[:12]} now; open another and send its tokens again",
                )
            if session.busy:
                raise GenerationRefused(
                    "wrong", f"session {name} is asked twice at once; wait for the first answer"
                )
            tokens = self._tokens(session, position, new)
            position = session.pages.length if position is None else position
            if position > session.pages.length:
                raise GenerationRefused(
                    "wrong",
                    f"position is {position}, and session {name} holds {session.pages.length} "
                    "tokens; send those between",
                )
            self._grant(session, tokens)
            session.pages.crop(position)
            session.busy, session.asked_s = True, self._clock()
            return session

    def end(self, session: Session) -> None:
        """End a request: another may follow, and what it did not need is free again."""
        with self._lock:
            session.busy, session.asked_s = False, self._clock()
            session.granted = session.pages.held_tokens
            if session.over:
                self._open.pop(session.name, None)
            self._lock.notify_all()

    def close(self, name: str, client: str) -> None:
        """Forget a client's session; one that is not there is closed already.

        What a request holds that is under way counts until that has ended.
        """
        with self._lock:
            session = self._open.get(name)
            if session is not None and session.client == client:
                session.over = session.busy
                if not session.busy:
                    del self._open[name]
                self._lock.notify_all()

    def evict(self) -> None:
        """Forget the sessions that nobody has used for too long."""
        with self._lock:
            self._evict()

    def _of(self, client: str) -> list[Session]:
        return [session for session in self._open.values() if session.client == client]

    def _await(self, there: Callable[[], bool]) -> None:
        """Wait for what sessions that are over give back, while there are any; the lock is held."""
        until = time.monotonic() + _LEAVES_S
        while any(session.over for session in self._open.values()) and not there():
            if not self._lock.wait(max(0.0, until - time.monotonic())):
                return

    def _has_place(self, client: str) -> bool:
        """Tell whether a client may open a session, or none of its own will make place."""
        own = self._of(client)
        return len(own) < self.bounds.sessions_per_client or not any(s.over for s in own)

    def _has_room(self, name: str, position: int | None, new: int) -> bool:
        """Tell whether a session may grow so, is not there to grow, or waits for nothing."""
        session = self._open.get(name)
        if session is None or session.over:
            return True
        own, everyone = self._sums(session, self._tokens(session, position, new))
        if own > self.bounds.tokens_per_client:
            return not any(other.over for other in self._of(session.client))
        return everyone <= self.bounds.tokens_in_all

    def _tokens(self, session: Session, position: int | None, new: int) -> int:
        """Return the tokens of the pages that a session has with new tokens from a position on."""
        kept = session.pages.length if position is None else position
        return pages_for(kept + new, self.bounds.page_tokens)

    def _sums(self, session: Session, tokens: int) -> tuple[int, int]:
        """Return what a client and all would hold, were a session granted so many tokens."""
        more = tokens - session.granted
        return sum(s.granted for s in self._of(session.client)) + more, self.granted_tokens + more

    def _grant(self, session: Session, tokens: int) -> None:
        bounds = self.bounds
        own, everyone = self._sums(session, tokens)
        if own > bounds.tokens_per_client:
            raise GenerationRefused(
                "full",
                f"client {shown(session.client)} would hold {own} tokens, of "
                f"{bounds.tokens_per_client}; shorten the text, or close another session",
            )
        if everyone > bounds.tokens_in_all:
            raise GenerationRefused(
                "full",
                f"all sessions would hold {everyone} tokens, of {bounds.tokens_in_all}; try again "
                "when others have ended",
            )
        session.granted = tokens

    def _evict(self, besides: str = "") -> None:
        late = self._clock() - self.bounds.idle_s
        for name, session in list(self._open.items()):
            if session.asked_s < late and not session.busy and name != besides:
                del self._open[name]
