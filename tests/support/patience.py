"""Time limits of tests, which follow what the machine has to run beside them."""

from __future__ import annotations

from fedlora.machine import stretch


def patient(seconds: float) -> float:
    """Return a limit in seconds as it is on this machine at this moment."""
    return seconds * stretch()
