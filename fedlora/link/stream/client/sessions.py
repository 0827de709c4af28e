"""The sessions of all clients of a process: what the server asks each is answered, in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from fedlora.errors import ClientLost, FedloraError
from fedlora.link import Frame, Handler, Reason, Words, edge_executor
from fedlora.link.messages import WELCOME
from fedlora.link.stream import CLOSED, REFUSED, RESUMED, reason_of
from fedlora.link.stream.client.answer import answer, leave
from fedlora.link.stream.client.session import ClientSession

_MOST_WAITING = 16
"""Frames of the largest size that requests of one client may take while they wait for their answer;
a server leaves fewer unanswered."""


class ClientSessions:
    """Hands each client the server's requests, and sends back what it answers.

    Parameters
    ----------
    lock
        Held while sessions or the stream change; it is that of whoever opens streams, as a client
        has to be here and on the stream, or neither.
    put
        Queues a frame's bytes on the present stream, if there is one.
    max_frame_bytes
        Largest frame that is sent.
    workers
        Threads that run handlers, each with one torch thread.
    words
        Turns what a handler raises into what the server is told.
    """

    def __init__(
        self,
        lock: threading.RLock,
        put: Callable[[bytes], None],
        max_frame_bytes: int,
        workers: int,
        words: Words,
    ) -> None:
        self._lock, self._put, self._words = lock, put, words
        self._max_frame_bytes = max_frame_bytes
        self._most_waiting = _MOST_WAITING * max_frame_bytes
        self._executor = edge_executor(workers)
        self._open: dict[str, ClientSession] = {}

    def all(self) -> list[ClientSession]:
        """Return the sessions that are open."""
        with self._lock:
            return list(self._open.values())

    def find(self, client: str) -> ClientSession | None:
        """Return a client's session; None when it is over."""
        with self._lock:
            return self._open.get(client)

    def begin(self, client: str, handler: Handler, hello: Frame) -> ClientSession:
        """Open a session.

        Raises
        ------
        FedloraError
            When the client has one already.
        """
        session = ClientSession(client, handler, hello)
        with self._lock:
            before = self._open.get(client)
            if before is not None and not before.last_words:
                raise FedloraError(f"client {client} is attached already; detach it first")
            if before is not None:
                self.finish(before, before.last_words[0])
            self._open[client] = session
        return session

    def wait(self, client: str, over: Future[None], idle_s: float) -> BaseException | None:
        """Wait for the end of a session, or end it when the server has forgotten the client.

        Parameters
        ----------
        client
            Whose it is.
        over
            ``ClientSession.over``.
        idle_s
            How long the server may ask it nothing.
        """
        while True:
            session = self.find(client)
            left_s = idle_s if session is None else session.asked_at + idle_s - time.monotonic()
            if session is not None and left_s <= 0 and not session.busy:
                self.lose(session, "idle", f"heard no request of the server for {idle_s:g} s")
            try:
                return over.exception(min(max(left_s, 0.05), threading.TIMEOUT_MAX))
            except TimeoutError:
                continue

    def take(self, frame: Frame, data: bytes) -> bool:
        """Take a frame of the server; return whether the server is at work with its session.

        Parameters
        ----------
        frame, data
            Its header, and all of it.
        """
        with self._lock:
            session = self.find(frame.client)
            if session is not None and not session.begun:
                session.begun = frame.kind in (WELCOME, REFUSED)
                if not session.begun:
                    return False  # meant for an earlier session of this client
            if frame.kind in (REFUSED, CLOSED):
                if session is not None:
                    verb = "was refused" if frame.kind == REFUSED else "was dropped"
                    self.lose(session, "dropped", f"{verb} by the server: {reason_of(frame)}")
                return False
            if session is None:
                self._put(leave(frame.client, frame.seq, Reason("absent").fields()))
                return False
            if not session.note(frame):
                return False
            if frame.kind == RESUMED:
                kept = session.kept(frame.fields.get("owed"))  # which the server has not received
                if kept:
                    self._put(kept)
                return True
            if sum(map(len, session.requests)) + len(data) > self._most_waiting:
                words = Reason("protocol").fields()
                self._put(leave(session.client, frame.seq, words))
                self.lose(session, "protocol", "was sent more than it could answer")
                return False
            session.requests.append(data)
            if not session.busy:
                session.busy = True
                self._executor.submit(self._work, session)
            return True

    def lose(self, session: ClientSession, kind: str, reason: str) -> None:
        """End a session; one that had given its last words ends with what they were.

        Parameters
        ----------
        session
            Which.
        kind, reason
            Why: of ``fedlora.reasons``, and as the rest of a sentence.
        """
        lost = ClientLost(f"client {session.client} {reason}")
        lost.kind = kind
        self.finish(session, session.last_words[0] if session.last_words else lost)

    def finish(self, session: ClientSession, error: BaseException | None) -> None:
        """End a session that is still open, well or with an error."""
        with self._lock:
            if self._open.get(session.client) is not session:
                return
            del self._open[session.client]
        if error is None:
            session.over.set_result(None)
        else:
            session.over.set_exception(error)

    def stop(self, *, wait: bool) -> None:
        """Start no handler any more; ``wait`` for those that are at work."""
        self._executor.shutdown(wait=wait, cancel_futures=not wait)

    def _work(self, session: ClientSession) -> None:
        """Answer a session's requests until none is left, or it is over."""
        while True:
            with self._lock:
                over = self._open.get(session.client) is not session
                if over or not session.requests:
                    session.busy = False
                    return
                data = session.requests.popleft()
            self._answer(session, data)

    def _answer(self, session: ClientSession, data: bytes) -> None:
        reply = answer(session, data, self._max_frame_bytes, self._words)
        with self._lock:
            if self._open.get(session.client) is not session:
                return  # dropped or detached meanwhile
            session.keep(reply.seq, reply.data)
            if not session.last_words and reply.last:
                session.last_words = [reply.error]
            if session.live:
                self._put(reply.data)
