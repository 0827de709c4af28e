"""A port of loopback whose other end is further away: bytes arrive later, each way."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable

_CHUNK_BYTES = 1 << 16


class DelayedPort:
    """Forwards connections to a port, every byte so much later.

    Parameters
    ----------
    target
        Port of loopback.
    delay_s
        Delay of each direction, in seconds.

    Attributes
    ----------
    port
        To dial in its place.
    """

    def __init__(self, target: int, delay_s: float) -> None:
        self._target, self._delay_s = target, delay_s
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._ends: list[socket.socket] = []

    def __enter__(self) -> DelayedPort:
        _start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.close()
        for end in self._ends:
            _end(end)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._ends.append(end)
                self._carry(near, far)
                self._carry(far, near)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        """Carry one direction, with a thread that reads and one that writes when it is time."""
        waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def read() -> None:
            data = b"begin"
            while data:
                try:
                    data = source.recv(_CHUNK_BYTES)
                except OSError:
                    data = b""
                waiting.put((time.monotonic() + self._delay_s, data))

        def write() -> None:
            with contextlib.suppress(OSError):  # the other end is gone
                while True:
                    due, data = waiting.get()
                    time.sleep(max(0.0, due - time.monotonic()))
                    if not data:
                        break
                    sink.sendall(data)
            _end(sink)

        _start(read)
        _start(write)


def _start(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
