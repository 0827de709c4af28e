"""A client's answer to one request, whatever becomes of it on the way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedlora.errors import FedloraError
from fedlora.link import Frame, Reason, Words, decode_frame, encode_frame, peek_frame, told
from fedlora.link.messages import END, LEAVE
from fedlora.link.stream.client.session import ClientSession

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


def answer(session: ClientSession, data: bytes, max_frame_bytes: int, words: Words) -> Answer:
    """Let a client's handler answer a request; one that fails makes the client leave.

    Parameters
    ----------
    session
        Whose request it is; one that has given its last words refuses it.
    data
        The request as it came.
    max_frame_bytes
        Largest reply that the server takes.
    words
        Turns what the handler raises into what the server is told.
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
            large = FedloraError(
                f"reply {reply.kind} has {len(data)} bytes and exceeds the frame limit of "
                f"{max_frame_bytes}; raise link.max_frame_mib"
            )
            large.kind = "size"
            raise large
        if reply.kind == LEAVE:
            error = FedloraError(f"client {session.client} left: {told(reply.fields)}")
            reason = Reason.read(reply.fields)
            error.kind, error.numbers = (reason.kind, reason.numbers) if reason else ("", {})
    except FedloraError as refusal:
        error = refusal
        data = leave(request.client, request.seq, words(refusal))
    except Exception as failure:
        log.exception("client %s failed to answer %s", session.client, request.kind)
        error = failure
        data = leave(request.client, request.seq, words(failure))
    return Answer(request.seq, data, error, last=error is not None or request.kind == END)


def leave(client: str, seq: int, reason: Mapping[str, Any]) -> bytes:
    """Return the frame by which a client leaves."""
    return encode_frame(Frame(LEAVE, client, seq, reason))
