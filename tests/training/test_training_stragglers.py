"""A device that answers too late is left out of that step, and of no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from support.federation import Federation, Handler, relative, scenario
from support.unsplit import Unsplit

from clients.edge_client import EdgeClient
from fedlora.errors import ClientLate, FedloraError
from fedlora.link import Frame, LocalLink, messages as m
from fedlora.server import steps

SLOW = "2"


class Slow:
    """Makes a client hold back its answers to some requests, until it is let go."""

    def __init__(self, kind: str, *numbers: int) -> None:
        self.kind = kind
        self.numbers = numbers
        self.gate = threading.Event()
        self.holds = threading.Event()
        self.asked = 0
        self.answers: list[Frame] = []

    def __call__(self, edge: EdgeClient) -> Handler:
        return self.handler(edge) if edge.name == SLOW else edge.handle

    def handler(self, edge: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            if frame.kind == self.kind:
                self.asked += 1
                if not self.numbers or self.asked in self.numbers:
                    self.holds.set()
                    assert self.gate.wait(60.0)
                    self.holds.clear()
            self.answers.append(edge.handle(frame))
            return self.answers[-1]

        return handle


class HeldLink(LocalLink):
    """The link of a slow client: who waits is told at once that it holds an answer back.

    So only who is to be late is late, however busy the machine is.
    """

    def __init__(self, link: LocalLink, slow: Slow) -> None:
        super().__init__(link.client, link._handler, link._executor)
        self._slow = slow

    def receive(self, timeout_s: float) -> Frame:
        while self._reply is not None and not self._reply.done():
            if self._slow.holds.is_set():
                raise ClientLate(f"client {self.client} gave no reply in {timeout_s:g} s")
            time.sleep(0.001)
        return super().receive(timeout_s)


def deployed(
    tiny: Any,
    records: Any,
    slow: Slow,
    *overrides: str,
    wrap: Callable[[EdgeClient], Handler] | None = None,
) -> Federation:
    config = scenario(
        tiny["gpt2"],
        records,
        "link.step_timeout_s=60",
        "head.share=step",
        "train.rounds=1",
        *overrides,
    )
    federation = Federation(config, wrap=wrap or slow, workers=4)
    cohort = federation.server.cohort
    cohort.deployed = True
    if SLOW in cohort:
        cohort[SLOW].link = HeldLink(cohort[SLOW].link, slow)
    return federation


def when_step(federation: Federation, step: int, act: Any) -> None:
    """Do something when the server has taken an optimiser step, counted from 1."""
    append = federation.recorder.append_event

    def noted(event: str, /, **fields: Any) -> None:
        append(event, **fields)
        if event == "step" and fields["step"] == step:
            act()

    federation.recorder.append_event = noted  # type: ignore[method-assign]


def let_go(slow: Slow) -> None:
    """Let the client answer, and wait until it has."""
    before = len(slow.answers)
    slow.gate.set()
    while len(slow.answers) == before:
        time.sleep(0.01)


def test_who_is_late_misses_that_step_alone_and_the_others_train_as_if_without_it(tiny, records):
    """The oracle is unsplit training without the late client's rows in the steps it missed."""
    slow = Slow(m.STEP, 3)
    federation = deployed(tiny, records, slow, "train.steps=6")
    when_step(federation, 4, lambda: let_go(slow))
    unsplit = Unsplit(federation)
    expected = [unsplit.step(number) for number in range(2)]
    late = unsplit.batches.pop()
    late.indices()  # what it uploads too late is not used
    expected += [unsplit.step(number) for number in (2, 3)]
    unsplit.batches.append(late)
    expected += [unsplit.step(number) for number in (4, 5)]
    federation.run()
    [record] = federation.recorder.rounds
    assert record["missed"] == {SLOW: 2}
    assert record["lost"] == []
    assert {c: own["rows"] for c, own in record["clients"].items()} == {"0": 18, "1": 18, "2": 12}
    assert federation.server.cohort.clients == ["0", "1", "2"]
    assert federation.recorder.losses() == pytest.approx(expected, rel=1e-5)
    for name, factor in federation.server.engine.adapter().items():
        assert relative(factor, unsplit.factors[name].detach()) < 1e-4, name


@pytest.mark.parametrize(
    "overrides",
    [
        ("head.share=personal", "train.accumulate=2"),
        ("head.share=round",),
        ("task.kind=causal_lm", "train.embedding=true", "head.share=personal"),
    ],
    ids=["accumulated", "round", "embedding"],
)
def test_who_was_late_takes_part_again(tiny, records, overrides):
    slow = Slow(m.STEP, 2)
    federation = deployed(tiny, records, slow, "train.steps=5", "train.rounds=2", *overrides)
    when_step(federation, 3, lambda: let_go(slow))
    federation.run()
    first, second = federation.recorder.rounds
    assert 1 <= first["missed"][SLOW] <= 3
    assert second["missed"] == {}
    rows = {c: own["rows"] for c, own in second["clients"].items()}
    assert rows["0"] == rows[SLOW]
    assert federation.server.cohort.lost == {}
    assert federation.server.cohort.late == {}


def test_who_is_late_too_often_is_dropped_with_the_reason_and_may_return(tiny, records):
    slow = Slow(m.STEP)
    federation = deployed(tiny, records, slow, "train.steps=2", "link.max_misses=2")
    federation.run()
    slow.gate.set()
    cohort = federation.server.cohort
    assert cohort.clients == ["0", "1"]
    assert "miss 2 of 2 in this round" in cohort.lost[SLOW]
    assert cohort.may_return == {SLOW}
    [record] = federation.recorder.rounds
    assert record["lost"] == [SLOW]
    assert record["missed"] == {SLOW: 2}


def test_a_client_that_is_late_with_its_report_sits_the_round_out(tiny, records):
    slow = Slow(m.ROUND, 1)
    federation = deployed(tiny, records, slow, "train.steps=2", "train.rounds=2")
    when_step(federation, 2, lambda: let_go(slow))
    federation.run()
    first, second = federation.recorder.rounds
    assert set(first["clients"]) == {"0", "1"}
    assert set(second["clients"]) == {"0", "1", "2"}


def test_where_everybody_is_late_the_step_waits_for_the_first(tiny, records):
    slow = Slow(m.STEP, 1)
    federation = deployed(
        tiny,
        records,
        slow,
        "train.steps=2",
        "federation.clients=1",
        "link.step_timeout_s=0.3",
        "link.max_misses=1000",
    )
    cohort = federation.server.cohort
    edge, link = federation.clients[0], cohort["0"].link
    link._handler = slow.handler(edge)

    def let_go_when_missed() -> None:
        while not cohort.misses["0"]:
            time.sleep(0.01)
        slow.gate.set()

    threading.Thread(target=let_go_when_missed, daemon=True).start()
    federation.run()
    assert cohort.clients == ["0"]
    assert federation.recorder.rounds[0]["missed"] == {}
    assert cohort.misses["0"] >= 1


def test_a_round_whose_time_is_up_leaves_its_last_steps_out(tiny, records, caplog, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    federation = deployed(
        tiny, records, Slow(""), "train.steps=50", "train.rounds=2", "link.round_timeout_s=9"
    )
    when_step(federation, 2, lambda: now_s.append(now_s.pop() + 10.0))
    when_step(federation, 53, lambda: now_s.append(now_s.pop() + 10.0))
    federation.run()
    rounds = federation.recorder.rounds
    assert [r["round"] for r in rounds] == [1, 2]
    assert [r["steps"] for r in rounds] == [2, 3]
    assert [r["clients"]["0"]["rows"] for r in rounds] == [6, 9]
    assert "its last 48 steps are left out" in caplog.text
    assert "its last 47 steps are left out" in caplog.text


@pytest.mark.parametrize("override", ["link.round_timeout_s=0.01", "link.step_timeout_s=0.3"])
def test_in_a_simulation_no_wall_clock_leaves_anybody_out(tiny, records, override):
    slow = Slow(m.STEP, 2)
    federation = deployed(tiny, records, slow, "train.steps=3", override)
    cohort = federation.server.cohort
    cohort.deployed = False
    held = cohort[SLOW].link
    cohort[SLOW].link = LocalLink(SLOW, held._handler, held._executor)
    if "round" in override:
        slow.gate.set()
    with pytest.raises(FedloraError, match=r"(simulation .* link\.step|link\.round_timeout_s)"):
        federation.run()
    slow.gate.set()
