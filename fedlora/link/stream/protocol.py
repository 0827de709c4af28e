"""What both ends of the tensor stream agree on."""

from __future__ import annotations

from typing import Final

from fedlora.errors import printable
from fedlora.link import Frame

SERVICE: Final = "fedlora.Link"
METHOD: Final = "Stream"
GENERATION_SERVICE: Final = "fedlora.Generation"
GENERATION_METHOD: Final = "Ask"
TOKEN_KEY: Final = "fedlora-token"
"""Metadata that opens a stream: an unused token, so that strangers are refused unread."""
RESUME_KEY: Final = "fedlora-resume"
"""Metadata that opens a stream after a break: the resume secret of a session."""

REFUSED: Final = "refused"
"""Frame from the server: the hello was refused; ``reason`` says why."""
CLOSED: Final = "closed"
"""Frame from either side: the session is over; ``reason`` says why. From the server it also says
that a client's last words, its reply to ``end`` or its ``leave``, have come."""
RESUME: Final = "resume"
"""Frame from the client, on another stream after a break: its secret in ``resume``, and in
``received`` the number of the last request that it has."""
RESUMED: Final = "resumed"
"""Frame from the server: the session goes on. ``resume`` is the next secret, ``owed`` the number of
the request whose reply has to be sent again (-1: none). Requests that were lost follow it."""
PROBE: Final = "probe"
"""Frame from a client that measures its link, at any time: the server answers at once with a frame
of the same kind and number that holds ``size`` bytes."""
PAD: Final = "pad"
"""Tensor of a probe."""
SECRET: Final = "resume"
"""Field of ``welcome``, ``resume`` and ``resumed`` that holds a resume secret."""

MAX_HELLO_BYTES: Final = 1 << 16


def channel_options(
    max_frame_bytes: int, keepalive_s: float, keepalive_timeout_s: float
) -> list[tuple[str, int]]:
    """Return the gRPC options that hold at both ends.

    Parameters
    ----------
    max_frame_bytes
        Largest message that is accepted.
    keepalive_s, keepalive_timeout_s
        A peer that was silent this long is pinged, and given up when it does not answer in time.
    """
    return [
        ("grpc.max_receive_message_length", max_frame_bytes),
        ("grpc.max_send_message_length", max_frame_bytes),
        ("grpc.keepalive_time_ms", round(1000 * keepalive_s)),
        ("grpc.keepalive_timeout_ms", round(1000 * keepalive_timeout_s)),
        # gRPC has pings of its own on the way, behind which that ping would wait for a minute.
        ("grpc.http2.ping_timeout_ms", round(1000 * (keepalive_s + keepalive_timeout_s))),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Identity only: a compressed message could unpack to far more than the frame limit.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]


def farewell(kind: str, client: str, reason: str) -> Frame:
    """Return the frame that ends a session from the server's side."""
    return Frame(kind, client, fields={"reason": reason})


def reason_of(frame: Frame) -> str:
    """Return the reason that a frame gives, fit for a log line."""
    return printable(str(frame.fields.get("reason", "")) or "no reason given")
