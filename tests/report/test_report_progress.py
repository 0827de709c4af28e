"""Progress is read off events, in bars on a terminal and in plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedlora.report import PhaseProgress, ProgressView, RunFolder


def plain_console() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=False)


def write_phase(folder: RunFolder, name: str, rounds: int = 2, steps: int = 5) -> None:
    folder.append_event("phase", name=name, rounds=rounds, steps=steps, clients=8)
    for step in range(1, rounds * steps + 1):
        number = (step - 1) // steps + 1
        folder.append_event(
            "step",
            phase=name,
            round=number,
            step=step,
            loss=2.0 / step,
            tokens=512 * step,
            bits_up=2e6 * step,
            bits_down=1e6 * step,
        )
        if step % steps == 0:
            folder.append_event(
                "round", phase=name, round=number, step=step, metric=0.8125, metric_name="accuracy"
            )


def test_speed_and_time_left_follow_from_the_times_of_events():
    phase = PhaseProgress({"name": "train", "rounds": 4, "steps": 5, "time": 100.0})
    for step in range(1, 6):
        phase.apply({"event": "step", "step": step, "tokens": 300 * step, "time": 100 + 2.0 * step})
    assert phase.tokens_per_second == pytest.approx(150)
    assert phase.eta_seconds == pytest.approx(2.0 * 15)


def test_time_left_of_a_resumed_run_counts_only_its_own_steps():
    phase = PhaseProgress({"name": "train", "rounds": 10, "steps": 10, "time": 0.0})
    phase.apply({"event": "step", "step": 91, "time": 3.0})
    phase.apply({"event": "step", "step": 92, "time": 6.0})
    assert phase.eta_seconds == pytest.approx(3.0 * 8)


def test_without_a_terminal_each_round_is_one_plain_line(tmp_path):
    folder = RunFolder.create(tmp_path)
    write_phase(folder, "baseline")
    write_phase(folder, "train")
    folder.append_event("done", status="finished", text="")
    console = plain_console()
    with ProgressView(folder, console) as view:
        assert view.follow(lambda: True) == "finished"
    text = console.file.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "baseline: 2 rounds of 5 steps, 8 clients",
        "baseline round 1/2",
        "baseline round 2/2",
        "train: 2 rounds of 5 steps, 8 clients",
        "train round 1/2",
        "train round 2/2",
    ]
    assert "loss 0.200" in lines[5]
    assert "accuracy 0.812" in lines[5]
    assert "up 20.0 Mbit  down 10.0 Mbit" in lines[5]


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_waited_for_is_told_until_training_begins(tmp_path, terminal):
    folder = RunFolder.create(tmp_path)
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    with ProgressView(folder, console) as view:
        for text in ("Flower and Ray start", "the server loads its blocks"):
            folder.append_event("waiting", text=text)
            view.poll()
            view._live.refresh() if terminal else None
        write_phase(folder, "train")
        view.poll()
    told = console.file.getvalue()
    assert told.index("Flower and Ray start") < told.index("the server loads its blocks")
    assert told.index("the server loads its blocks") < told.rindex("loss")
    assert terminal or "\nthe server loads its blocks\ntrain: 2 rounds" in told


def test_a_long_evaluation_tells_how_far_it_is(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.append_event("phase", name="train", rounds=1, steps=5, clients=8)
    folder.append_event("evaluation", phase="train", round=1, rows=1280, total=7600)
    folder.append_event("evaluation", phase="train", round=1, rows=1600, total=7600)
    console = plain_console()
    view = ProgressView(folder, console)
    view.poll()
    told = [line for line in console.file.getvalue().splitlines() if "evaluated" in line]
    assert told == ["train round 1: evaluated 1,280 of 7,600 rows"]  # the next is too soon
    phase = PhaseProgress({"name": "train"})
    phase.apply({"event": "evaluation", "rows": 1280, "total": 7600})
    assert phase.figures() == ["evaluated 1,280 of 7,600 rows"]
    phase.apply({"event": "round", "round": 1})
    assert phase.figures() == []


def test_on_a_terminal_the_bars_show_both_phases(tmp_path):
    folder = RunFolder.create(tmp_path)
    write_phase(folder, "baseline")
    write_phase(folder, "train")
    folder.append_event("done", status="finished", text="")
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with ProgressView(folder, console) as view:
        view.follow(lambda: True)
    text = console.file.getvalue()
    assert text.count("step 10/10") >= 2
    assert "up 20.0 Mbit" in text


def test_messages_are_printed_as_they_are_and_warnings_say_so(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.append_event("message", text="client [red]x[/red] was lost", level="warning")
    folder.append_event("message", text="adapter saved", level="info")
    console = plain_console()
    ProgressView(folder, console).poll()
    assert console.file.getvalue().splitlines() == [
        "warning: client [red]x[/red] was lost",
        "adapter saved",
    ]


def test_a_run_that_dies_without_a_word_has_no_status(tmp_path):
    folder = RunFolder.create(tmp_path)
    write_phase(folder, "train")
    with ProgressView(folder, plain_console()) as view:
        assert view.follow(lambda: False) is None


def test_status_and_reason_of_a_failure_are_kept(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.append_event("done", status="failed", text="only 1 of 4 clients connected")
    view = ProgressView(folder, plain_console())
    assert view.poll()
    assert (view.status, view.text) == ("failed", "only 1 of 4 clients connected")


def test_events_with_missing_keys_are_tolerated(tmp_path):
    folder = RunFolder.create(tmp_path)
    for event in ("step", "round", "phase", "step", "round", "message", "unheard-of"):
        folder.append_event(event)
    assert ProgressView(folder, plain_console()).poll() is False
