"""How busy this machine is, so that a limit in seconds means as much work on a loaded one."""

from __future__ import annotations

import os
from pathlib import Path

_LOAD, _THREAD = "/proc/loadavg", "/proc/self/task/{}/schedstat"


def cores() -> int:
    """Return how many processors the machine has; what is runnable is counted over all of them."""
    return os.cpu_count() or 1


def stretch() -> float:
    """Return how many times longer work takes here than alone: what is runnable for each core.

    The larger of the last minute's mean and of this moment, and at least 1.
    """
    runnable = os.getloadavg()[0] if hasattr(os, "getloadavg") else 1.0
    try:
        now = Path(_LOAD).read_text(encoding="ascii").split()[3].partition("/")[0]
        runnable = max(runnable, float(now))
    except (OSError, IndexError, ValueError):  # no Linux
        pass
    return max(1.0, runnable / cores())


def waited_s(thread: int) -> float | None:
    """Return how long a thread of this process was ready to run and had no processor, in seconds.

    Parameters
    ----------
    thread
        Its ``native_id``.

    Returns
    -------
    float or None
        None where the operating system does not tell, or the thread is gone.
    """
    try:
        return int(Path(_THREAD.format(thread)).read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None
