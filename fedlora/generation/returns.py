"""When devices come back with their next token, and whether a forward waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from fedlora.generation.sessions import Session

_NEWEST = 0.3  # weight of the newest of what is averaged
_LATE = 2.0  # times its usual pause, after which a device is not waited for


@dataclass
class _Pause:
    """What a device does between an answer and its next request: head, sampling, and the way."""

    answered_s: float
    usual_s: float | None = None


class Returns:
    """Weighs what a forward of few rows costs those who come while it runs.

    A forward takes about as long with one row as with several, as it reads all weights either way.
    Whoever comes just after it began waits until it ends, so that devices that share a clock would
    be served in two halves, each at the price of all.

    Parameters
    ----------
    clock
        Seconds, as ``time.monotonic`` gives them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pauses: WeakKeyDictionary[Session, _Pause] = WeakKeyDictionary()
        self._forward_s: float | None = None

    def answered(self, session: Session) -> None:
        """Note that a session's request is answered now."""
        pause = self._pauses.setdefault(session, _Pause(0.0))
        pause.answered_s = self._clock()

    def came(self, session: Session) -> None:
        """Note that a session's next request is there now."""
        if pause := self._pauses.get(session):
            pause.usual_s = _average(pause.usual_s, self._clock() - pause.answered_s)

    def took(self, seconds: float) -> None:
        """Note what a forward of steps took."""
        self._forward_s = _average(self._forward_s, seconds)

    def worth_s(self, present: Collection[Session], waited_s: float = 0.0) -> float:
        """Return for how long those who are there had better wait for those who will be.

        Waiting ``t`` for ``m`` others costs the ``n`` rows that are there ``n t``, spares the
        others ``m (d - t)`` of a forward that takes ``d``, and spares the blocks that forward,
        ``d`` once more; the ``m`` that spares most decides, and ``t`` is below ``d``, with what
        was waited already.

        Parameters
        ----------
        present
            Sessions whose requests wait.
        waited_s
            How long the forward has waited already.

        Returns
        -------
        float
            Seconds; 0 where waiting costs more than it spares.
        """
        if self._forward_s is None:
            return 0.0
        now, best, until = self._clock(), 0.0, 0.0
        pauses = [pause for session, pause in self._pauses.items() if session not in present]
        for others, wait in enumerate(sorted(self._waits(pauses, now)), 1):
            if waited_s + wait >= self._forward_s:
                break
            spared = others * (self._forward_s - wait) + self._forward_s - len(present) * wait
            if spared > best:
                best, until = spared, wait
        return until

    def _waits(self, pauses: Collection[_Pause], now: float) -> list[float]:
        """Return in how many seconds each of these may come, but those that are late."""
        waits = []
        for pause in pauses:
            if pause.usual_s is None or now > pause.answered_s + _LATE * pause.usual_s:
                continue
            waits.append(max(pause.answered_s + pause.usual_s - now, pause.usual_s / 4))
        return waits


def _average(usual: float | None, newest: float) -> float:
    return newest if usual is None else usual + _NEWEST * (newest - usual)
