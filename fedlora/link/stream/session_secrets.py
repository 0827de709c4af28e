"""Secrets by which a session whose stream broke is taken up again on another stream.

With the numbers of requests they make a request idempotent: sent again, it is answered from what
was kept, so that it is computed exactly once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fedlora.errors import FedloraError

REMEMBERED_S = 600.0  # how long the reason of a session that is over is kept for its client
REMEMBERED = 4  # and of how many sessions of one client


@dataclass
class _Session:
    client: str
    valid: list[bytes] = field(default_factory=list)  # digests; the newest last
    received: int = 0
    over: str = ""
    over_at_s: float = 0.0


class ResumeSecrets:
    """Issues a session's secrets, each in place of the one before; keeps only their hashes.

    A secret is ``session.random``: 256 random bits, compared in constant time. It opens that one
    session, at no earlier request than the client had stated when the secret was issued. A new one
    is issued at each reconnect; the one before holds until the new one is known to have arrived, or
    a break at that moment would end the session. All methods may be called from any thread.

    Parameters
    ----------
    clock
        Source of time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def open(self, client: str) -> tuple[str, str]:
        """Begin a session; return its identifier and its first secret."""
        identifier = secrets.token_hex(8)
        now = self._clock()
        with self._lock:
            self._sessions = {
                known: session
                for known, session in self._sessions.items()
                if not session.over or now - session.over_at_s < REMEMBERED_S
            }
            over = [k for k, s in self._sessions.items() if s.client == client and s.over]
            for known in over[: 1 - REMEMBERED]:  # a client that comes again and again fills none
                del self._sessions[known]
            self._sessions[identifier] = session = _Session(client)
            return identifier, _issue(identifier, session)

    def check(self, secret: str) -> str:
        """Return the session that a secret opens now, without using it.

        Raises
        ------
        FedloraError
            When it is unknown or replaced, or the session is over; the reason is named.
        """
        with self._lock:
            return self._find(secret)[0]

    def client(self, identifier: str) -> str:
        """Return whose session it is; empty when it is known no more."""
        with self._lock:
            session = self._sessions.get(identifier)
            return session.client if session is not None else ""

    def redeem(self, secret: str, client: str, received: int) -> tuple[str, str]:
        """Take up a session again; return its identifier and the secret for the next time.

        Parameters
        ----------
        secret
            The secret.
        client
            Who shows it.
        received
            Number of the last request that the client received.

        Raises
        ------
        FedloraError
            As ``check`` does; also when the session is another client's, or the client has fallen
            behind what it stated before, as a copy of it would.
        """
        with self._lock:
            identifier, session, digest = self._find(secret)
            if session.client != client:
                raise FedloraError(f"the session is that of client {session.client}, not {client}")
            if received < session.received:
                raise FedloraError(
                    f"client {client} had received request {session.received} and now says "
                    f"{received}; only one process may use a session"
                )
            session.received = received
            session.valid = [digest]
            return identifier, _issue(identifier, session)

    def confirm(self, identifier: str) -> None:
        """Take note that the newest secret has arrived; the one before is void now."""
        with self._lock:
            session = self._sessions.get(identifier)
            if session is not None:
                del session.valid[:-1]

    def void(self, identifier: str, reason: str) -> None:
        """End a session; its secrets open nothing, and its client is told the reason."""
        with self._lock:
            session = self._sessions.get(identifier)
            if session is not None and not session.over:
                session.over, session.over_at_s = reason, self._clock()

    def _find(self, secret: str) -> tuple[str, _Session, bytes]:
        identifier, _, random = secret.partition(".")
        session, digest = self._sessions.get(identifier), _digest(random)
        known = False
        for valid in session.valid if session is not None else ():
            known |= hmac.compare_digest(valid, digest)
        if session is None or not known:
            raise FedloraError("the resume secret is unknown or was replaced")
        if session.over:
            raise FedloraError(f"the session is over: {session.over}")
        return identifier, session, digest


def _issue(identifier: str, session: _Session) -> str:
    random = secrets.token_urlsafe(32)
    session.valid.append(_digest(random))
    return f"{identifier}.{random}"


def _digest(random: str) -> bytes:
    return hashlib.sha256(random.encode("utf-8", "surrogatepass")).digest()
