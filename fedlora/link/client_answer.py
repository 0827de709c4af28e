"""A client's answer to one request, whatever becomes of it on the way."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fedlora.errors import FedloraError
from fedlora.link.client_session import ClientSession
from fedlora.link.frame import Frame, decode_frame, encode_frame, peek_frame
from fedlora.link.messages import END, LEAVE
from fedlora.link.stream import reason_of

log = logging.getLogger("fedlora.link")


@dataclass(frozen=True)
class Answer:
    """What goes back to the server.

    Attributes
    ----------
    seq
        Number of the request.
    data
        The reply as a frame's bytes.
    error
        Why the client leaves with it, if it does.
    last
        Whether the session ends with it.
    """

    seq: int
    data: bytes
    error: BaseException | None
    last: bool


def answer(session: ClientSession, data: bytes, max_frame_bytes: int) -> Answer:
    """Let a client's handler answer a request; one that fails makes the client leave.

    Parameters
    ----------
    session
        Whose request it is; one that has given its last words refuses it.
    data
        The request as it came.
    max_frame_bytes
        Largest reply that the server takes.
    """
    error: BaseException | None = None
    request = peek_frame(data, max_frame_bytes)
    try:
        if session.last_words:
            raise FedloraError(f"client {session.client} has left: {session.last_words[0]}")
        request = decode_frame(data, max_frame_bytes)
        reply = session.handler(request)
        data = encode_frame(reply)
        if len(data) > max_frame_bytes:
            raise FedloraError(
                f"reply {reply.kind} has {len(data)} bytes and exceeds the frame limit of "
                f"{max_frame_bytes}; raise link.max_frame_mib"
            )
        if reply.kind == LEAVE:
            error = FedloraError(f"client {session.client} left: {reason_of(reply)}")
    except FedloraError as refusal:
        error = refusal
        data = leave(request.client, request.seq, str(refusal))
    except Exception as failure:
        log.exception("client %s failed to answer %s", session.client, request.kind)
        error = failure
        data = leave(request.client, request.seq, "the client failed; its own log says why")
    return Answer(request.seq, data, error, last=error is not None or request.kind == END)


def leave(client: str, seq: int, reason: str) -> bytes:
    """Return the frame by which a client leaves."""
    return encode_frame(Frame(LEAVE, client, seq, {"reason": reason}))
