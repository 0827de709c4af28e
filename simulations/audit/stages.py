"""Progress of an audit: a bar for the whole and one for what is going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Advance = Callable[[], None]


class Stages:
    """Shows which stage runs, how far it is, and how many there are.

    Where the output is no terminal, a line is printed for each stage that has ended.

    Parameters
    ----------
    console
        Where progress goes; None for nowhere.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._total = 0
        self._done = 0
        self._whole: TaskID | None = None
        if console is not None and console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def expect(self, stages: int) -> None:
        """Announce how many stages there will be."""
        self._total = stages
        if self._bars is not None:
            self._whole = self._bars.add_task("audit", total=stages)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """Show one stage; call what it yields after each of its ``total`` parts."""
        started = time.monotonic()
        self._done += 1
        if self._bars is None:
            yield lambda: None
            if self._console is not None:
                took = f"{time.monotonic() - started:.0f} s"
                place = f"{self._done}/{max(self._total, self._done)}"
                self._console.print(f"{place} {name} ({took})", highlight=False)
            return
        bar = self._bars.add_task(name, total=total)
        yield lambda: self._bars.advance(bar) if self._bars is not None else None
        self._bars.remove_task(bar)
        if self._whole is not None:
            self._bars.advance(self._whole)
