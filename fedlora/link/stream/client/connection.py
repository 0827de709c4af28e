"""One open tensor stream at the edge, and what its end means."""

from __future__ import annotations

import queue
from typing import Any

import grpc

from fedlora.errors import printable
from fedlora.link.stream import METHOD, RESUME_KEY, SERVICE, TOKEN_KEY
from fedlora.link.stream.client.session import ClientSession

_FORGED = "CERTIFICATE_VERIFY_FAILED"
_TOO_LARGE = "larger than max"  # gRPC's word; without it the server is crowded, for a while
_FINAL = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)


class ClientStream:
    """A stream and the queue that feeds the thread in which gRPC writes.

    Parameters
    ----------
    channel
        Where it is opened.
    opener
        The session whose resume secret, or token, opens it.

    Attributes
    ----------
    answered
        Whether the server has taken in any session on it.
    """

    def __init__(self, channel: Any, opener: ClientSession) -> None:
        self.opener = opener
        self.answered = False
        self.outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._channel = channel
        shown = (RESUME_KEY, opener.secret) if opener.secret else (TOKEN_KEY, opener.token)
        self.call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(
            iter(self.outgoing.get, None), metadata=(shown,)
        )

    def give_up(self) -> None:
        """Cancel it if nobody has answered yet."""
        if not self.answered:
            self.call.cancel()

    def end(self) -> None:
        """Let go of everything."""
        self.outgoing.put(None)
        self.call.cancel()
        self._channel.close()


def explain(error: grpc.RpcError, address: str) -> str:
    """Say in words why a stream to an address ended."""
    code, details = error.code(), printable(error.details())
    if _FORGED in details:
        return f"{address} does not hold the certificate of this run"
    if code == grpc.StatusCode.UNAVAILABLE:
        return (
            f"no connection to {address} ({details}); check link.public_host, link.port and that "
            "the server runs"
        )
    if code == grpc.StatusCode.CANCELLED:
        return f"{address} took the connection and gave no answer ({details})"
    return details


def is_final(error: grpc.RpcError) -> bool:
    """Tell whether dialling again would end the same way."""
    details = printable(error.details())
    too_large = error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details
    return too_large or error.code() in _FINAL or _FORGED in details
