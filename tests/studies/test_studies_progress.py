"""A long command tells how far it is, on a terminal and in a pipe."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from simulations import progress
from simulations.progress import Bars


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=terminal)


def test_in_a_pipe_a_task_is_told_as_it_begins_now_and_then_and_at_its_end(clock):
    pipe = console(terminal=False)
    with Bars(console=pipe) as bars:
        task = bars.add_task("losses by rank", total=40)
        for _ in range(40):
            clock.s += 4
            bars.advance(task)
        bars.update(task, description="after its end nothing is told")
    lines = pipe.file.getvalue().splitlines()
    assert lines[0] == "losses by rank 0/40" and lines[-1] == "losses by rank 40/40"
    assert lines[1] == "losses by rank 3/40, about 2 min 28 s left"
    assert len(lines) == 2 + 13  # every 12 s of 160


def test_what_was_done_before_does_not_count_as_fast_work(clock):
    pipe = console(terminal=False)
    with Bars(console=pipe) as bars:
        task = bars.add_task("episodes", total=100, completed=90)
        clock.s += 30
        bars.update(task, advance=1)
    assert pipe.file.getvalue().splitlines()[-1] == "episodes 91/100, about 4 min 30 s left"


def test_a_terminal_has_bars_and_no_lines():
    terminal = console(terminal=True)
    with Bars(console=terminal) as bars:
        list(bars.track(range(3), description="drawing"))
    said = terminal.file.getvalue()
    assert "100%" in said and "drawing 3/3" not in said


def test_what_is_tracked_is_told_in_a_pipe():
    pipe = console(terminal=False)
    with Bars(console=pipe) as bars:
        assert list(bars.track(range(3), description="drawing")) == [0, 1, 2]
    assert pipe.file.getvalue().splitlines()[-1] == "drawing 3/3"
