"""How long everybody may be kept waiting by one device, over the whole run."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

_KEPT = 0.25


class Patience:
    """Seconds for which each device may still be waited for alone.

    Counted is the time after a majority had answered. Everybody begins with the limit of a step;
    the run itself gives them back a little at a time, so a device that is slower than the others is
    left out of some steps and never keeps them waiting for more than that in all.

    Parameters
    ----------
    limit_s
        What a device begins with, and the most that it can have.
    rate
        Seconds that each second of the run gives back, the time of waiting for one device excepted.
    clock
        Source of time in seconds.
    """

    def __init__(
        self, limit_s: float, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_s = limit_s
        self._rate = rate
        self._clock = clock
        self._left: dict[str, float] = {}
        self._counted_at = clock()

    def left(self, client: str, one_of_many: bool = False) -> float:
        """Return how long the others may still be kept waiting by a device.

        Where it is ``one_of_many`` requests, a part is kept for those at a round's beginning and
        end: who is late there misses more than a step.
        """
        left_s = self._left.get(client, self._limit_s)
        return max(0.0, left_s - _KEPT * self._limit_s) if one_of_many else left_s

    def majority_s(
        self, answered: Mapping[str, float], asked: Collection[str], since: float, waiting: int = 0
    ) -> float | None:
        """Return when a majority had done its part; None where it has not yet.

        Parameters
        ----------
        answered
            When each of those who were asked and have answered did.
        asked
            Who was asked in this exchange.
        since
            When they were asked.
        waiting
            How many others have done their part before, and wait.
        """
        devices = len(asked) + waiting
        if devices < 2:
            return None
        needed = devices // 2 + 1 if devices > 2 else 1
        if waiting >= needed:
            return since
        moments = sorted(answered.values())
        place = needed - waiting - 1
        return max(since, moments[place]) if place < len(moments) else None

    def count(
        self, answered: Mapping[str, float], asked: Collection[str], majority_s: float | None
    ) -> None:
        """Take from each device what the others have waited for it, and give all a little back.

        Parameters
        ----------
        answered, asked
            As for ``majority_s``.
        majority_s
            What that returned when the exchange was over.
        """
        now = self._clock()
        useful_to = now if majority_s is None else min(now, majority_s)
        back = self._rate * max(0.0, useful_to - self._counted_at)
        self._counted_at = now
        for client in self._left:
            self._left[client] = min(self._limit_s, self._left[client] + back)
        for client in asked if majority_s is not None else ():
            kept = min(now, answered.get(client, now)) - useful_to
            if kept > 0:
                self._left[client] = max(0.0, self.left(client) - kept)
