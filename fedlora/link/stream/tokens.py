"""Single-use tokens that open a client's session on the tensor stream."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedlora.errors import FedloraError

MOST_CLAIMS = 64
"""How often a client may show a token whose answer it did not hear; once for each broken stream."""
_USED = "the token was used before; let the server grant a new one"


@dataclass
class _Grant:
    digest: bytes
    grantee: str
    expires_s: float
    claimant: str = ""
    claims: int = 0
    used: bool = False


class TokenStore:
    """Grants tokens and redeems each of them once; keeps only their hashes.

    A token is ``identifier.secret``: the identifier finds the grant, the 256-bit random secret is
    compared in constant time. All methods may be called from any thread.

    Parameters
    ----------
    clock
        Source of time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._grants: dict[str, _Grant] = {}
        self._lock = threading.Lock()

    def grant(self, grantee: str, ttl_s: float) -> str:
        """Return a new token.

        Parameters
        ----------
        grantee
            Whom the token is for: a Flower node id, or a partition number.
        ttl_s
            How long it may be redeemed, in seconds.
        """
        identifier, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        now = self._clock()
        with self._lock:
            self._grants = {k: g for k, g in self._grants.items() if g.expires_s > now}
            self._grants[identifier] = _Grant(_digest(secret), grantee, now + ttl_s)
        return f"{identifier}.{secret}"

    def check(self, token: str) -> str:
        """Return the grantee of a token that ``redeem`` would take now, without using it up.

        Raises
        ------
        FedloraError
            As ``redeem`` does.
        """
        with self._lock:
            return self._find(token).grantee

    def claim(self, token: str, client: str) -> str:
        """Let a client use a token, and it alone; return the grantee.

        The same client may claim it again until it is redeemed, as when its stream broke before it
        heard the answer.

        Raises
        ------
        FedloraError
            As ``redeem`` does; also when another client has claimed it.
        """
        with self._lock:
            grant = self._find(token)
            if grant.claimant not in ("", client):
                raise FedloraError(_USED)
            if grant.claims >= MOST_CLAIMS:
                raise FedloraError(
                    f"the token was shown {MOST_CLAIMS} times and led to no session; let the "
                    "server grant a new one"
                )
            grant.claimant = client
            grant.claims += 1
            return grant.grantee

    def redeem(self, token: str) -> str:
        """Use a token up and return its grantee.

        Raises
        ------
        FedloraError
            When the token is unknown, expired or used already.
        """
        with self._lock:
            grant = self._find(token)
            grant.used = True
            return grant.grantee

    def _find(self, token: str) -> _Grant:
        identifier, _, secret = token.partition(".")
        grant = self._grants.get(identifier)
        if grant is None or not hmac.compare_digest(grant.digest, _digest(secret)):
            raise FedloraError("the token is unknown; let the server of this run grant a new one")
        if grant.used:
            raise FedloraError(_USED)
        if self._clock() >= grant.expires_s:
            raise FedloraError("the token has expired; let the server grant a new one")
        return grant


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
