"""What a server's log says of those whom it refuses: a flood of them must not fill the disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

MOST, PERIOD_S = 20, 60.0
"""Refusals that are written in a period; the others are counted."""


class Refusals:
    """Writes refusals to a log, and of many only how many there were; for one thread.

    Parameters
    ----------
    log
        Where they are written, as warnings.
    clock
        Source of time in seconds.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._began = clock()
        self._written = self._left_out = 0

    def write(self, text: str, *values: object) -> None:
        """Write a refusal, or count it where the present period has had enough."""
        if self._clock() - self._began >= PERIOD_S:
            self.flush()
            self._began, self._written = self._clock(), 0
        if self._written < MOST:
            self._written += 1
            self._log.warning(text, *values)
        else:
            self._left_out += 1

    def flush(self) -> None:
        """Write how many were counted since."""
        if self._left_out:
            self._log.warning("%d more refusals are not written one by one", self._left_out)
            self._left_out = 0
