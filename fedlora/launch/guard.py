"""A process between ``fedlora run`` and Flower that ends all of Flower when ``fedlora run`` ends.

However it ends: ``kill -9`` gives nobody a last word, but it closes the pipe that the guard reads.
On Linux, processes that lose their parent become the guard's children, so it finds them all; where
that is not to be had, it finds the descendants that still hang together.

It is started as ``python -m fedlora.launch.guard HOME COMMAND...`` with the pipe as its standard
input. A byte on it says that all is written, so that nobody has to be asked to end: Flower's
simulation takes three seconds when it is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

END_S = 5.0  # for each of the two ways to end them: asked, then killed
ALL_WRITTEN = b"."
_LOOK_S = 0.2
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2), Linux 3.4 and later


def guard(home: str, command: Sequence[str]) -> int:
    """Run a command until it ends, or something comes on standard input or its other end is closed.

    Parameters
    ----------
    home
        Folder of the command's own, which is removed at the end.
    command
        What to run; its descendants are ended with it.

    Returns
    -------
    int
        The command's status, or 0 where it was ended from here.
    """
    _adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    status, patience_s = None, END_S
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        while status is None and not select.select([sys.stdin], [], [], _LOOK_S)[0]:
            status = _reap().get(child.pid)
        child.returncode = status or 0  # it is waited for here, with all who were adopted
        if status is None and os.read(sys.stdin.fileno(), 1):
            patience_s = 0.0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _end_children(patience_s)
        shutil.rmtree(home, ignore_errors=True)
    return status or 0


def _adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, where the system can do that."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap() -> dict[int, int]:
    """Return the status of each child that has ended since the last call."""
    ended = {}
    with contextlib.suppress(ChildProcessError):  # there is none at all
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended


def _end_children(patience_s: float) -> None:
    """End all descendants: politely for so long, then for certain, even if this was suspended."""
    started, asked, late = time.monotonic(), set[int](), not patience_s
    me = psutil.Process()
    while family := me.children(recursive=True):
        if late and time.monotonic() > started + patience_s + END_S:
            return  # they were killed, and do not end
        late = late or time.monotonic() > started + patience_s
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if late:
                    process.kill()
                elif process.pid not in asked:
                    asked.add(process.pid)
                    process.terminate()
        time.sleep(0.05)
        _reap()


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1], sys.argv[2:]))
