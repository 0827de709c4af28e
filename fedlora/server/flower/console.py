"""Progress and result of a run in the ServerApp's own output, which ``flwr run --stream`` shows."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from fedlora.report import ProgressView, RunFolder, print_result
from fedlora.terminal import show_anything

_WIDTH = 100  # Flower's log is no terminal
_EVERY_S = 1.0


@contextmanager
def narrated(folder: RunFolder) -> Iterator[None]:
    """Print a line a round while the block runs, and the result table when it ends without error.

    Parameters
    ----------
    folder
        The run's folder.
    """
    show_anything(sys.stdout)
    console = Console(file=sys.stdout, width=_WIDTH, color_system=None, force_terminal=False)
    over = threading.Event()
    _, seen = folder.read_events()  # of a run that is taken up again
    with ProgressView(folder, console, offset=seen) as view:
        thread = threading.Thread(
            target=view.follow,
            args=(lambda: not over.is_set(),),
            kwargs={"interval_s": _EVERY_S},
            name="fedlora-narrate",
            daemon=True,
        )
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(10 * _EVERY_S)
    print_result(folder, console)
