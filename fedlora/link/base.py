"""What the engine sees of a client: a link that carries one request and one reply at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from fedlora.link.frame import Frame


class ClientLink(ABC):
    """A connection to one client.

    Attributes
    ----------
    client
        Identifier of the client at the other end.
    wire_bytes_down, wire_bytes_up
        Bytes sent and received so far, framing included.
    answered_s
        When the latest reply came, by ``time.monotonic``.
    """

    client: str
    wire_bytes_down: int = 0
    wire_bytes_up: int = 0
    answered_s: float = -math.inf

    @abstractmethod
    def send(self, frame: Frame) -> None:
        """Send a request without waiting; raise ``ClientLost`` when the link is closed."""

    @abstractmethod
    def receive(self, timeout_s: float) -> Frame:
        """Return the reply to the last request.

        Raises
        ------
        ClientLost
            When the link closed.
        ClientLate
            When no reply came within ``timeout_s`` seconds, or earlier where it is known that
            none will; it may still come, and a further call returns it.
        ProtocolError
            When the reply is no valid frame, or answers another request.
        """

    @abstractmethod
    def close(self, reason: str = "") -> None:
        """Close the link; a reason is sent to the client where the transport can."""
