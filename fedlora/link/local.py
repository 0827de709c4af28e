"""The in-process link: the same frames, encoded and decoded, without a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, TimeoutError

from fedlora.errors import ClientLate, ClientLost, ProtocolError
from fedlora.link.base import ClientLink
from fedlora.link.frame import Frame, decode_frame, encode_frame
from fedlora.threads import compute_with

Handler = Callable[[Frame], Frame]


def edge_executor(workers: int) -> ThreadPoolExecutor:
    """Return an executor whose threads compute with one torch thread each.

    One thread for each client makes the bits independent of how many run side by side.
    """
    return ThreadPoolExecutor(workers, "edge", initializer=compute_with, initargs=(1,))


class LocalLink(ClientLink):
    """Calls a client's handler in another thread.

    Parameters
    ----------
    client
        Identifier of the client.
    handler
        Turns a request frame into a reply frame (``EdgeClient.handle``).
    executor
        Where the handler runs; see ``edge_executor``.
    max_frame_bytes
        Largest frame that is accepted.
    """

    def __init__(
        self, client: str, handler: Handler, executor: Executor, max_frame_bytes: int = 1 << 28
    ) -> None:
        self.client = client
        self._handler = handler
        self._executor = executor
        self._max_frame_bytes = max_frame_bytes
        self._reply: Future[bytes] | None = None
        self._seq = -1
        self._closed = ""

    def send(self, frame: Frame) -> None:
        """See ``ClientLink``."""
        if self._closed:
            raise ClientLost(f"client {self.client} is gone ({self._closed})")
        data = encode_frame(frame)
        self.wire_bytes_down += len(data)
        self._seq = frame.seq
        self._reply = self._executor.submit(self._answer, data, self._reply)
        self._reply.add_done_callback(self._note_answer)

    def receive(self, timeout_s: float) -> Frame:
        """See ``ClientLink``."""
        if self._reply is None:
            raise ClientLost(f"client {self.client} was asked nothing, so it has no reply")
        try:
            data = self._reply.result(timeout_s)
        except TimeoutError:
            raise ClientLate(f"client {self.client} gave no reply in {timeout_s:g} s") from None
        self.wire_bytes_up += len(data)
        reply = decode_frame(data, self._max_frame_bytes)
        if reply.seq != self._seq or reply.client != self.client:
            raise ProtocolError(
                f"client {self.client} answered request {reply.seq} as {reply.client!r}, "
                f"not request {self._seq}"
            )
        return reply

    def close(self, reason: str = "") -> None:
        """See ``ClientLink``."""
        self._closed = reason or "closed"

    def _note_answer(self, reply: Future[bytes]) -> None:
        if reply is self._reply:
            self.answered_s = time.monotonic()

    def _answer(self, data: bytes, before: Future[bytes] | None) -> bytes:
        if before is not None:  # a client answers in order
            before.exception()
        return encode_frame(self._handler(decode_frame(data, self._max_frame_bytes)))
