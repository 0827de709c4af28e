"""The server's end of one client's session on a tensor stream."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from fedlora.errors import ClientLate, ClientLost, FedloraError, ProtocolError, printable
from fedlora.link import ClientLink, Frame, decode_frame, encode_frame
from fedlora.link.messages import END
from fedlora.link.stream import CLOSED, RESUMED, SECRET, farewell

log = logging.getLogger("fedlora.link")

Post = Callable[[bytes], None]


class StreamLink(ClientLink):
    """A link to a client whose frames travel over a gRPC stream, and over another if that breaks.

    The engine's thread calls ``send``, ``receive`` and ``close``; encoding and decoding happen
    there. The stream's event loop calls the others. A client owes one reply for each request, in
    order; a late reply to an earlier request is dropped, anything else that it sends ends its
    session. So a link never holds more than one received frame, and of those that were sent the
    ones that are unanswered, for a client that lost them with its stream.

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
    session
        Identifier of the session, which resume secrets open.
    ended
        Called once with the reason when the session is over.

    Attributes
    ----------
    away
        Why its stream broke, while it may still come back on another; empty otherwise.
    reconnects
        How often it came back.
    """

    def __init__(
        self,
        hello: Frame,
        grantee: str,
        post: Post,
        max_frame_bytes: int,
        queue_frames: int,
        session: str,
        ended: Callable[[str], None],
    ) -> None:
        self.client = hello.client
        self.hello = hello
        self.grantee = grantee
        self.session = session
        self.away = ""
        self.reconnects = 0
        self._post: Post | None = post
        self._ended = ended
        self._max_frame_bytes = max_frame_bytes
        self._queue_frames = queue_frames
        self._changed = threading.Condition()
        self._owed: deque[tuple[int, bytes]] = deque()
        self._waived = range(0)  # replies that nobody waits for any more, and that may still come
        self._last = -1
        self._reply: bytes | None = None
        self._ending = False
        self._lost = ""

    @property
    def lost(self) -> str:
        """Why the link is closed; empty while it is open."""
        return self._lost

    def send(self, frame: Frame) -> None:
        """See ``ClientLink``; while the client is away the request waits for it."""
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
            self._owed.append((frame.seq, data))
            self._last = frame.seq
            self._ending = frame.kind == END
            self._reply = None
            try:
                self._put(data)
            except RuntimeError:
                raise ClientLost(f"client {self.client} is gone (the server stopped)") from None

    def receive(self, timeout_s: float) -> Frame:
        """See ``ClientLink``; a reply that came before the stream broke is still returned."""
        with self._changed:
            if self._reply is None and not self._owed and not self._lost:
                raise ClientLost(f"client {self.client} was asked nothing, so it has no reply")
            self._changed.wait_for(lambda: self._reply is not None or bool(self._lost), timeout_s)
            data, self._reply = self._reply, None
            away = f" ({self.away})" if self.away else ""
        if data is None:
            if self._lost:
                raise ClientLost(f"client {self.client} is gone ({self._lost})")
            raise ClientLate(f"client {self.client} gave no reply in {timeout_s:g} s{away}")
        try:
            return decode_frame(data, self._max_frame_bytes)
        except ProtocolError as error:
            log.warning("client %s is dropped: %s", self.client, printable(error))
            self.close(printable(error))
            raise

    def close(self, reason: str = "") -> None:
        """See ``ClientLink``; what the client still sends is ignored."""
        data = encode_frame(farewell(CLOSED, self.client, reason))
        with self._changed:
            if self.lose(reason or "closed"):
                with contextlib.suppress(RuntimeError):  # the server stopped; the client knows
                    self._put(data)

    def acknowledge(self) -> None:
        """Tell the client that its last words have come; until then it would send them again."""
        with self._changed:
            self._put(encode_frame(farewell(CLOSED, self.client, "")))

    def deliver(self, seq: int, data: bytes) -> bool:
        """Take a reply from the stream; return False when no such reply is owed."""
        with self._changed:
            if seq in self._waived:
                self._waived = range(seq + 1, self._waived.stop)
                self.wire_bytes_up += len(data)
                return True
            if not self._owed or self._owed[0][0] != seq:
                return False
            self._owed.popleft()
            self.wire_bytes_up += len(data)
            if not self._owed and not self._lost:
                self._reply, self.answered_s = data, time.monotonic()
                if self._ending:
                    self.lose("its session has ended")
                self._changed.notify_all()
            return True

    def suspend(self, post: Post, reason: str) -> bool:
        """Take note that a stream broke; False when the client is on another, or the link closed.

        Parameters
        ----------
        post
            The stream's, as it was given.
        reason
            Why it broke.
        """
        with self._changed:
            if self._lost or self._post != post:
                return False
            self._post, self.away = None, reason
            return True

    def resume(self, post: Post, secret: str, received: int) -> None:
        """Go on over another stream, and send again what the client has not received.

        Parameters
        ----------
        post
            As in the constructor.
        secret
            What the client shows the next time.
        received
            Number of the last request that it has received.

        Raises
        ------
        ProtocolError
            When the link is closed, or there was no such request.
        """
        with self._changed:
            if self._lost:
                raise ProtocolError(f"the session is over: {self._lost}")
            if received > self._last:
                raise ProtocolError(
                    f"client {self.client} says that it received request {received}, and the last "
                    f"was {self._last}"
                )
            unheard = [(seq, data) for seq, data in self._owed if seq > received]
            heard = [(seq, data) for seq, data in self._owed if seq <= received]
            kept = unheard or heard[-1:]  # only the reply to the last request is still of use
            waived = [seq for seq, _ in heard if seq < kept[0][0]]
            if waived:
                start = self._waived.start if self._waived else waived[0]
                self._waived = range(start, waived[-1] + 1)
            self._owed = deque(kept)
            self._post, self.away = post, ""
            self.reconnects += 1
            owed = kept[0][0] if kept and not unheard else -1
            fields = {SECRET: secret, "owed": owed}
            self._put(encode_frame(Frame(RESUMED, self.client, 0, fields)))
            for _, data in unheard:
                self._put(data)

    def lose(self, reason: str) -> bool:
        """Mark the link as closed and wake who waits; return False when it was closed before."""
        with self._changed:
            if self._lost:
                return False
            self._lost = reason
            self._changed.notify_all()
        self._ended(reason)
        return True

    def _put(self, data: bytes) -> None:
        if self._post is not None:
            self.wire_bytes_down += len(data)
            self._post(data)
