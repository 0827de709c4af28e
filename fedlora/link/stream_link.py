"""The server's end of one client's session on a tensor stream."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable

from fedlora.errors import ClientLost, FedloraError, ProtocolError
from fedlora.link.frame import Frame, decode_frame, encode_frame
from fedlora.link.link import Link
from fedlora.link.messages import END
from fedlora.link.stream import CLOSED, farewell, printable

log = logging.getLogger("fedlora.link")


class StreamLink(Link):
    """A link to a client whose frames travel over a gRPC stream.

    The engine's thread calls ``send``, ``receive`` and ``close``; encoding and decoding happen
    there. The stream's event loop calls ``deliver`` and ``lose``. A client owes one reply for each
    request, in order; a late reply to an earlier request is dropped, anything else that it
    sends ends its session. So a link never holds more than one received frame.

    Parameters
    ----------
    hello
        The frame by which the client introduced itself.
    grantee
        Whom the token that it redeemed was granted to.
    post
        Queues bytes on the stream; raises ``RuntimeError`` when the event loop has ended.
    max_frame_bytes
        Largest frame that is sent or accepted.
    queue_frames
        Requests that may be unanswered before ``send`` gives the client up.
    """

    def __init__(
        self,
        hello: Frame,
        grantee: str,
        post: Callable[[bytes], None],
        max_frame_bytes: int,
        queue_frames: int,
    ) -> None:
        self.client = hello.client
        self.hello = hello
        self.grantee = grantee
        self._post = post
        self._max_frame_bytes = max_frame_bytes
        self._queue_frames = queue_frames
        self._changed = threading.Condition()
        self._owed: deque[int] = deque()
        self._reply: bytes | None = None
        self._ending = False
        self._lost = ""

    @property
    def lost(self) -> str:
        """Why the link is closed; empty while it is open."""
        return self._lost

    def send(self, frame: Frame) -> None:
        """See ``Link``."""
        if frame.client != self.client:
            raise FedloraError(f"a frame for client {frame.client!r} is sent to {self.client!r}")
        data = encode_frame(frame)
        if len(data) > self._max_frame_bytes:
            raise FedloraError(
                f"request {frame.kind} has {len(data)} bytes and exceeds the frame limit of "
                f"{self._max_frame_bytes}; raise link.max_frame_mib"
            )
        with self._changed:
            if len(self._owed) >= self._queue_frames:
                self.close(f"left {self._queue_frames} requests unanswered")
            if self._lost:
                raise ClientLost(f"client {self.client} is gone ({self._lost})")
            self._owed.append(frame.seq)
            self._ending = frame.kind == END
            self._reply = None
            self.wire_bytes_down += len(data)
            try:
                self._post(data)
            except RuntimeError:
                raise ClientLost(f"client {self.client} is gone (the server stopped)") from None

    def receive(self, timeout_s: float) -> Frame:
        """See ``Link``; a reply that came before the stream broke is still returned."""
        with self._changed:
            if self._reply is None and not self._owed and not self._lost:
                raise ClientLost(f"client {self.client} was asked nothing, so it has no reply")
            self._changed.wait_for(lambda: self._reply is not None or bool(self._lost), timeout_s)
            data, self._reply = self._reply, None
        if data is None:
            if self._lost:
                raise ClientLost(f"client {self.client} is gone ({self._lost})")
            raise ClientLost(f"client {self.client} gave no reply in {timeout_s:g} s")
        try:
            return decode_frame(data, self._max_frame_bytes)
        except ProtocolError as error:
            log.warning("client %s is dropped: %s", self.client, printable(error))
            self.close(printable(error))
            raise

    def close(self, reason: str = "") -> None:
        """See ``Link``; what the client still sends is ignored."""
        data = encode_frame(farewell(CLOSED, self.client, reason))
        with self._changed:
            if self.lose(reason or "closed"):
                with contextlib.suppress(RuntimeError):  # the server stopped; the client knows
                    self._post(data)

    def deliver(self, seq: int, data: bytes) -> bool:
        """Take a reply from the stream; return False when no such reply is owed."""
        with self._changed:
            if not self._owed or self._owed[0] != seq:
                return False
            self._owed.popleft()
            self.wire_bytes_up += len(data)
            if not self._owed and not self._lost:
                self._reply = data
                if self._ending:
                    self._lost = "its session has ended"
                self._changed.notify_all()
            return True

    def lose(self, reason: str) -> bool:
        """Mark the link as closed and wake who waits; return False when it was closed before."""
        with self._changed:
            if self._lost:
                return False
            self._lost = reason
            self._changed.notify_all()
            return True
