"""Progress of a run that goes on in another process, followed through its ``events.jsonl``.

Events, one a line, each with ``event`` and ``time`` (seconds since the epoch):

``phase``
    ``name`` (``baseline`` or ``train``), ``rounds``, ``steps`` (optimiser steps in each round),
    ``clients``.
``step``
    ``phase``, ``round``, ``step`` (from 1 over the whole phase), ``loss`` (training loss or None),
    ``tokens``, ``bits_up``, ``bits_down`` (all three cumulative over the phase).
``evaluation``
    ``phase``, ``round``, ``rows`` that are done of ``total``, now and then in a long evaluation.
``round``
    ``phase`` and what is known of a ``RoundRecord``: ``round``, ``step``, ``loss``, ``metric``,
    ``metric_name``; with the phase ``train`` also ``bits_up`` and ``bits_down``.
``budget``
    ``client`` that joined under privacy, ``rho`` and ``label_epsilon`` that it will have spent at
    most at the run's end.
``message``
    ``text``, ``level`` (``info``, ``warning`` or ``error``).
``waiting``
    ``text``, what the run waits for until its next event.
``done``
    ``status`` (``finished``, ``failed`` or ``interrupted``), ``text``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from fedlora.checks import finite
from fedlora.errors import printable
from fedlora.report.run_folder import RunFolder
from fedlora.report.units import MetricText, bits_text, count_text, number_text, seconds_text

RATE_WINDOW = 50
TELL_EVERY_S = 10.0  # on what is no terminal, in long evaluations
STYLES = {"warning": "yellow", "error": "bold red"}


class PhaseProgress:
    """How far one phase is, from its events alone.

    Parameters
    ----------
    event
        The ``phase`` event that opened it.
    """

    def __init__(self, event: Mapping[str, Any]) -> None:
        self.name = str(event.get("name", "train"))
        self.rounds = int(finite(event.get("rounds")) or 1)
        self.steps_per_round = int(finite(event.get("steps")) or 1)
        self.started = finite(event.get("time")) or 0.0
        self.latest = self.started
        self.first_step: int | None = None
        self.round = 0
        self.step = 0
        self.loss: float | None = None
        self.metric: float | None = None
        self.metric_name = ""
        self.evaluated = ""
        self.bits_up = 0.0
        self.bits_down = 0.0
        self._tokens: deque[tuple[float, float]] = deque(maxlen=RATE_WINDOW)
        self._steps: deque[tuple[float, float]] = deque(maxlen=RATE_WINDOW)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the phase."""
        return self.rounds * self.steps_per_round

    @property
    def tokens_per_second(self) -> float | None:
        """Rate over the last steps, or None until there are two."""
        return _rate(self._tokens)

    @property
    def steps_per_second(self) -> float | None:
        """Optimiser steps a second over the last steps, or None until there are two."""
        return _rate(self._steps)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds from the latest event to the end of the phase, at the mean pace so far."""
        if self.first_step is None:
            return None
        done = self.step - self.first_step + 1
        return (self.latest - self.started) / done * max(0, self.total_steps - self.step)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take in a ``step``, ``evaluation`` or ``round`` event."""
        self.latest = finite(event.get("time")) or self.latest
        self.round = int(finite(event.get("round")) or self.round)
        self.step = int(finite(event.get("step")) or self.step)
        self.evaluated = ""
        self.bits_up = finite(event.get("bits_up")) or self.bits_up
        self.bits_down = finite(event.get("bits_down")) or self.bits_down
        if event["event"] == "evaluation":
            rows, total = finite(event.get("rows")), finite(event.get("total"))
            self.evaluated = f"evaluated {count_text(rows)} of {count_text(total)} rows"
        elif event["event"] == "step":
            if self.first_step is None:  # above 1 in a run that was resumed
                self.first_step = self.step
            self.loss = finite(event.get("loss"))
            self._steps.append((self.latest, self.step))
            tokens = finite(event.get("tokens"))
            if tokens is not None:
                self._tokens.append((self.latest, tokens))
        else:
            self.metric = finite(event.get("metric"))
            self.metric_name = str(event.get("metric_name") or self.metric_name)

    def figures(self) -> list[str]:
        """Return loss, metric, speed and traffic as short texts, those that are known."""
        rate, told = self.tokens_per_second, MetricText(self.metric_name)
        known = {
            self.evaluated: bool(self.evaluated),
            f"loss {number_text(self.loss)}": self.loss is not None,
            f"{told.name} {told.text(self.metric)}": self.metric is not None,
            f"{count_text(rate)} tokens/s": rate is not None,
            f"up {bits_text(self.bits_up)}": self.bits_up > 0,
            f"down {bits_text(self.bits_down)}": self.bits_down > 0,
        }
        return [text for text, there in known.items() if there]


class ProgressView:
    """Bars on a terminal, one plain line a round elsewhere.

    Use it as a context manager around ``follow``, or around calls of ``poll``.

    Parameters
    ----------
    folder
        The run to follow; its events may not exist yet.
    console
        Where to draw.
    offset
        Byte offset in ``events.jsonl`` to start from.
    """

    def __init__(
        self, folder: RunFolder, console: Console | None = None, *, offset: int = 0
    ) -> None:
        self.folder = folder
        self.console = console or Console()
        self.status: str | None = None
        self.text = ""
        self._offset = offset
        self._phase: PhaseProgress | None = None
        self._task: TaskID | None = None
        self._tell_at = 0.0
        self._waiting = "starting"
        self._bars = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=None, complete_style="blue", finished_style="green"),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("round {task.fields[round]}/{task.fields[rounds]}"),
            TextColumn("{task.fields[remaining]}"),
            console=self.console,
            expand=True,
        )
        self._live = Live(
            console=self.console,
            get_renderable=self._render,
            refresh_per_second=5,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> ProgressView:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.poll()
        if self.console.is_terminal:
            self._live.stop()

    def follow(self, alive: Callable[[], bool], *, interval_s: float = 0.2) -> str | None:
        """Show events until the run says that it is done, or its process is no longer alive.

        Returns
        -------
        str or None
            The status of the ``done`` event; None when the run died without one.
        """
        while not self.poll() and alive():
            time.sleep(interval_s)
        self.poll()
        return self.status

    def poll(self) -> bool:
        """Show the events that are new; True once the run is done."""
        events, self._offset = self.folder.read_events(self._offset)
        for event in events:
            self._show(event)
        return self.status is not None

    def _show(self, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "phase":
            self._open(event)
        elif kind in ("step", "evaluation", "round"):
            if self._phase is None:
                self._open({"name": event.get("phase", "train"), "time": event.get("time")})
            self._advance(event)
        elif kind == "message":
            level, text = str(event.get("level")), str(event.get("text", ""))
            text = printable(text, len(text))
            prefix = f"{level}: " if level in STYLES else ""
            self.console.print(Text(prefix + text, style=STYLES.get(level, "")), soft_wrap=True)
        elif kind == "waiting":
            text = str(event.get("text", ""))
            self._waiting = printable(text, len(text))
            if not self.console.is_terminal:
                self.console.print(Text(self._waiting), soft_wrap=True)
        elif kind == "done":
            self.status = str(event.get("status", "finished"))
            text = str(event.get("text") or "")
            self.text = printable(text, len(text))

    def _open(self, event: Mapping[str, Any]) -> None:
        self._phase = PhaseProgress(event)
        if self.console.is_terminal:
            self._task = self._bars.add_task(
                self._phase.name,
                total=self._phase.total_steps,
                round=0,
                rounds=self._phase.rounds,
                remaining="",
            )
        else:
            clients = finite(event.get("clients"))
            self.console.print(
                Text(
                    f"{self._phase.name}: {self._phase.rounds} "
                    f"{'round' if self._phase.rounds == 1 else 'rounds'} of "
                    f"{self._phase.steps_per_round} steps"
                    + (f", {count_text(clients)} clients" if clients else "")
                )
            )

    def _advance(self, event: Mapping[str, Any]) -> None:
        phase = self._phase
        if phase is None:
            return
        phase.apply(event)
        eta = phase.eta_seconds
        if self._task is not None:
            over = phase.step >= phase.total_steps
            remaining = seconds_text(phase.latest - phase.started) if over else _left(eta)
            self._bars.update(
                self._task, completed=phase.step, round=phase.round, remaining=remaining
            )
        elif phase.evaluated and phase.latest > self._tell_at:
            self._tell_at = phase.latest + TELL_EVERY_S
            self.console.print(Text(f"{phase.name} round {phase.round}: {phase.evaluated}"))
        elif event["event"] == "round":
            parts = [
                f"{phase.name} round {phase.round}/{phase.rounds}",
                f"step {phase.step}/{phase.total_steps}",
                *phase.figures(),
                _left(eta),
            ]
            self.console.print(Text("  ".join(part for part in parts if part)), soft_wrap=True)

    def _render(self) -> Group:
        figures = " · ".join(self._phase.figures()) if self._phase else self._waiting
        return Group(self._bars, Text(figures, style="dim", overflow="ellipsis", no_wrap=True))


def _rate(points: Sequence[tuple[float, float]]) -> float | None:
    if len(points) < 2:
        return None
    (start, before), (end, after) = points[0], points[-1]
    return (after - before) / (end - start) if end > start and after >= before else None


def _left(eta: float | None) -> str:
    if not eta:
        return ""
    return f"{max(1, round(eta))} s left" if eta < 60 else f"{seconds_text(eta)} left"
