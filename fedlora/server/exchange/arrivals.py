"""Clients that were welcomed on the stream, and have to say that they are ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from fedlora.errors import ClientLate, ClientLost, FedloraError, ProtocolError
from fedlora.link import Frame, messages as m, told
from fedlora.link.stream.server.link import StreamLink

_READY_S = 30.0


class Arrivals:
    """Waits for many at once, so that one that is silent keeps nobody waiting.

    Parameters
    ----------
    clock
        Source of time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._greeted: dict[str, tuple[StreamLink, float]] = {}

    def __bool__(self) -> bool:
        """Tell whether anybody is waited for."""
        return bool(self._greeted)

    def add(self, link: StreamLink) -> None:
        """Wait for a client, in place of an earlier session of it."""
        self._greeted[link.client] = (link, self._clock() + _READY_S)

    def ready(self) -> Iterator[tuple[StreamLink, Frame | FedloraError]]:
        """Yield whose answer has come or will not come, with the answer or what is wrong."""
        for client, (link, until) in list(self._greeted.items()):
            try:
                found: Frame | FedloraError = _checked(link.receive(0.0))
            except ClientLate as error:
                if self._clock() < until:
                    continue
                found = ClientLost(f"{error}, and {_READY_S:g} s to be ready")
            except FedloraError as error:
                found = error
            del self._greeted[client]
            yield link, found


def _checked(ready: Frame) -> Frame:
    """Return a client's answer to its welcome; raises ``ProtocolError`` unless it is ready."""
    if ready.kind == m.LEAVE:
        raise ProtocolError(f"it leaves at once: {told(ready.fields)}")
    if ready.kind != m.READY:
        raise ProtocolError(f"it answered {ready.kind[:40]!r} where {m.READY} was due")
    return ready
