"""What both ends of the tensor stream agree on."""

from __future__ import annotations

from typing import Any, Final

from fedlora.link.frame import Frame

SERVICE: Final = "fedlora.Link"
METHOD: Final = "Stream"
TOKEN_KEY: Final = "fedlora-token"
"""Metadata that opens a stream: an unused token, so that strangers are refused unread."""

REFUSED: Final = "refused"
"""Frame from the server: the hello was refused; ``reason`` says why."""
CLOSED: Final = "closed"
"""Frame from the server: the session is over; ``reason`` says why."""

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


def printable(text: Any) -> str:
    """Return at most 300 characters of a peer's text without line breaks or control codes."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:300])
