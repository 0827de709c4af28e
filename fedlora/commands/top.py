"""``fedlora top``: how a run goes, from its folder alone."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from fedlora.checks import number
from fedlora.errors import FedloraError
from fedlora.observe.top import RunView
from fedlora.report import RunFolder


def show_run(path: Path, *, once: bool, interval_s: float) -> None:
    """Show a run until it ends or the user has seen enough; a finished run is shown once.

    A finished run that is served is shown until its servers end.

    Raises
    ------
    FedloraError
        When the folder holds no run, or the interval is no number.
    """
    number("--interval", interval_s)
    folder = RunFolder(path)
    if not folder.events.is_file():
        raise FedloraError(f"{path} holds no run; name a run folder, such as runs/NAME-TIME")
    console, view = Console(), RunView(folder)
    view.poll()
    if once or (view.done and not view.served) or not console.is_terminal:
        console.print(view.render(time.time()))
        return
    with contextlib.suppress(KeyboardInterrupt):
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while not view.done or view.served:
                live.update(view.render(time.time(), height=console.height), refresh=True)
                time.sleep(interval_s)
                view.poll()
    console.print(view.render(time.time()))
