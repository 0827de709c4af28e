"""Which streams a server carries: few for each client, so that none crowds out the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedlora.link.stream.server.connection import ServerStream

MOST_OF_ONE = 4
"""Streams of one client at one time; an honest one has one, and another while that breaks."""
BURST, RATE = 64, 10.0
"""Streams that one client may open one after the other, and how many more each second."""


class StreamPlaces:
    """The open streams, by the client whose token or secret opened them.

    Parameters
    ----------
    most
        Streams at one time.
    clock
        Source of time in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._free: dict[str, tuple[float, float]] = {}  # what each may still open, as of when
        self._open: dict[ServerStream, str] = {}  # the oldest first

    def __iter__(self) -> Iterator[ServerStream]:
        """Return the open streams."""
        return iter(list(self._open))

    def take(self, stream: ServerStream, opener: str) -> bool:
        """Give a stream a place; False when there is none, or its client opens them all the time.

        An older stream of the same client makes place when it has too many. When the server is
        full, so does the oldest on which nobody was admitted.
        """
        now = self._clock()
        free, before = self._free.get(opener, (float(BURST), now))
        free = min(BURST, free + RATE * (now - before))
        self._free[opener] = (max(0.0, free - 1), now)
        if free < 1:
            return False
        own = [known for known, whose in self._open.items() if whose == opener]
        if len(own) >= MOST_OF_ONE:
            self._end(_idlest(own), "its client opened other streams")
        elif len(self._open) >= self._most:
            idle = [known for known in self._open if not known.links]
            if not idle:
                return False
            self._end(idle[0], "the server is full, and nobody was admitted on it")
        self._open[stream] = opener
        return True

    def leave(self, stream: ServerStream) -> None:
        """Take note that a stream has ended."""
        self._open.pop(stream, None)

    def _end(self, stream: ServerStream, reason: str) -> None:
        self.leave(stream)
        stream.abort(reason)


def _idlest(streams: list[ServerStream]) -> ServerStream:
    """Return the oldest stream without a client, or else the oldest."""
    return next((stream for stream in streams if not stream.links), streams[0])
