"""Pauses between attempts to reach a server again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable


class Backoff:
    """Pauses that double, each up to a fifth longer or shorter by chance, until time is up.

    Parameters
    ----------
    give_up_s
        Time from the first pause to the end of the attempts, in seconds.
    first_s, longest_s
        The first pause and the longest one, in seconds.
    clock
        Source of time in seconds.
    """

    def __init__(
        self,
        give_up_s: float,
        *,
        first_s: float = 0.1,
        longest_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.give_up_s = give_up_s
        self._first_s, self._longest_s = first_s, longest_s
        self._clock = clock
        self._chance = random.SystemRandom()  # so that clients of one server do not come as one
        self.reset()

    def reset(self) -> None:
        """Begin anew, after an attempt that succeeded."""
        self._pause_s = self._first_s
        self._end_s: float | None = None

    def next_s(self) -> float | None:
        """Return the next pause in seconds, or None when time is up."""
        now = self._clock()
        if self._end_s is None:
            self._end_s = now + self.give_up_s
        if now >= self._end_s:
            return None
        pause_s = min(self._pause_s * self._chance.uniform(0.8, 1.2), self._end_s - now)
        self._pause_s = min(2 * self._pause_s, self._longest_s)
        return pause_s
