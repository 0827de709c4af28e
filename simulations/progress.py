"""How far a long command is: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

from fedlora.report import count_text, seconds_text

_EVERY_S = 10.0


class Bars(Progress):
    """Rich's bars; where the console is no terminal a task is told as it begins, goes on and ends.

    Parameters
    ----------
    columns
        Of the bars; rich's own where there are none.
    console
        Where to draw; stderr by default.
    """

    def __init__(self, *columns: ProgressColumn, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self._begun: dict[TaskID, tuple[float, float]] = {}
        self._due: dict[TaskID, float] = {}

    def add_task(self, description: str, *settings: Any, **fields: Any) -> TaskID:
        """See rich's ``Progress``."""
        task_id = super().add_task(description, *settings, **fields)
        self._begun[task_id] = (time.monotonic(), self._tasks[task_id].completed)
        self._due[task_id] = 0.0
        self._tell(task_id)
        return task_id

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """See rich's ``Progress``."""
        super().update(task_id, **changes)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """See rich's ``Progress``."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        """Print a line where there are no bars, if one is due."""
        now, task = time.monotonic(), self._tasks[task_id]
        over = task.total is not None and task.completed >= task.total
        if not self.disable or (now < self._due[task_id] and not over) or self._due[task_id] < 0:
            return
        self._due[task_id] = -1.0 if over else now + _EVERY_S
        line = task.description.strip() + f" {count_text(task.completed)}"
        began, before = self._begun[task_id]
        if task.total is not None:
            line += f"/{count_text(task.total)}"
            if (done := task.completed - before) > 0 and not over:
                left_s = (now - began) / done * (task.total - task.completed)
                line += f", about {seconds_text(left_s)} left"
        self.console.print(line.strip(), markup=False, highlight=False, soft_wrap=True)
