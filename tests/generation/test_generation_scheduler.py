"""Whoever waits is in the next forward, and a long prompt holds nobody up."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence

import pytest
import torch
from support.patience import patient

from fedlora.generation.bounds import GenerationRefused
from fedlora.generation.engine import NewTokens
from fedlora.generation.pages import RowPages
from fedlora.generation.returns import Returns
from fedlora.generation.scheduler import Scheduler
from fedlora.generation.sessions import Session


class Counting:
    """Stands for the blocks: returns what goes in, and notes what each forward took."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []
        self.begun = 0
        self.gate = threading.Semaphore(0)
        self.error: Exception | None = None

    def forward(self, rows: Sequence[NewTokens]) -> list[torch.Tensor]:
        self.begun += 1
        self.gate.acquire()
        if self.error:
            raise self.error
        self.taken.append([len(row.activation) for row in rows])
        for row in rows:
            row.pages.append(0, row.activation.expand(2, 1, 1, -1, -1))
            row.pages.commit(len(row.activation))
        return [row.activation for row in rows]


@pytest.fixture
def blocks():
    return Counting()


@pytest.fixture
def scheduler(blocks):
    made = Scheduler(blocks, chunk_tokens=64)
    yield made
    blocks.gate.release(1000)
    made.end()


def session(name: str) -> Session:
    return Session(name, name, "v", (), RowPages(), 0.0)


def numbers(count: int) -> torch.Tensor:
    return torch.arange(float(count))[:, None].repeat(1, 2)


def test_steps_pass_a_long_prompt_and_prompts_share_what_a_forward_takes(scheduler, blocks):
    long, short = session("long"), session("short")
    whole = scheduler.submit(long, numbers(200), 70)
    blocks.gate.release()
    while blocks.begun < 2:  # it waits at the gate with the long prompt alone
        time.sleep(0.001)
    waiting = [scheduler.submit(short, numbers(40), 1)]
    waiting += [scheduler.submit(session(str(n)), numbers(1 + n), 1) for n in range(3)]
    blocks.gate.release(1000)
    assert torch.equal(whole.result(10), numbers(200)[-70:])
    assert [future.result(10)[0, 0].item() for future in waiting] == [39, 0, 1, 2]
    assert [len(taken) for taken in blocks.taken[:2]] == [1, 1]
    assert sorted(blocks.taken[2]) == [1, 2, 3, 32, 32]
    assert all(sum(count for count in taken if count > 16) <= 64 for taken in blocks.taken)
    assert long.pages.length == 200


def test_a_forward_that_fails_is_told_to_all_in_it_and_leaves_their_rows_as_they_were(
    scheduler, blocks
):
    one = session("one")
    blocks.gate.release()
    scheduler.submit(one, numbers(3), 1).result(10)
    blocks.error = RuntimeError("out of memory")
    blocks.gate.release()
    with pytest.raises(GenerationRefused, match=r"fail on a batch \(RuntimeError\); try again"):
        scheduler.submit(one, numbers(100), 1).result(10)
    blocks.error = None
    assert one.pages.length == 3
    blocks.gate.release()
    assert scheduler.submit(one, numbers(5), 2).result(10).shape == (2, 2)
    assert one.pages.length == 8


def test_numbers_that_are_none_are_refused_and_forgotten(scheduler, blocks):
    blocks.gate.release(10)
    one, other = session("one"), session("other")
    bad = numbers(80)
    bad[70] = torch.nan
    futures = [scheduler.submit(one, bad, 20), scheduler.submit(other, numbers(2), 1)]
    with pytest.raises(GenerationRefused, match="NaN or infinity"):
        futures[0].result(10)
    assert futures[1].result(10)[0, 0] == 1
    assert (one.pages.length, other.pages.length) == (0, 2)


def test_nothing_more_is_computed_of_a_session_that_was_closed(scheduler, blocks):
    gone, other = session("gone"), session("other")
    whole = scheduler.submit(gone, numbers(200), 1)
    while blocks.begun < 1:  # its first 64 tokens are at the gate
        time.sleep(0.001)
    after = scheduler.submit(other, numbers(3), 1)
    gone.over = True
    blocks.gate.release(1000)
    assert after.result(patient(10))[0, 0] == 2
    with pytest.raises(GenerationRefused, match="its session was closed meanwhile"):
        whole.result(patient(10))
    assert blocks.taken == [[64], [3]]
    assert gone.pages.length == 0


def test_an_end_refuses_who_waits(blocks):
    made = Scheduler(blocks)
    blocks.gate.release(1000)
    made.end()
    with pytest.raises(GenerationRefused, match="the server ends"):
        made.submit(session("late"), numbers(1), 1)


def test_a_request_alone_is_computed_where_it_is_asked_and_handed_over_when_another_waits(
    scheduler, blocks, monkeypatch
):
    threads, forward = [], blocks.forward

    def noting(rows: Sequence[NewTokens]) -> list[torch.Tensor]:
        threads.append(threading.current_thread().name)
        return forward(rows)

    monkeypatch.setattr(blocks, "forward", noting)
    blocks.gate.release()
    alone = scheduler.submit(session("alone"), numbers(3), 3, here=True)
    assert alone.done()
    assert torch.equal(alone.result(), numbers(3))
    assert threads == [threading.current_thread().name]

    found: list[torch.Tensor] = []

    def ask() -> None:
        found.append(scheduler.submit(session("long"), numbers(100), 100, here=True).result())

    asking = threading.Thread(target=ask, name="asking")
    asking.start()
    while len(threads) < 2:  # it is in its first forward, of 64 tokens
        time.sleep(0.001)
    other = scheduler.submit(session("other"), numbers(2), 2, here=True)
    blocks.gate.release(10)
    asking.join(patient(10))
    assert torch.equal(found[0], numbers(100))
    assert torch.equal(other.result(patient(10)), numbers(2))
    assert threads[1:] == ["asking", "generation"]
    assert sorted(blocks.taken[-1]) == [2, 36]


def test_a_request_alone_wakes_no_other_thread(scheduler, blocks, monkeypatch):
    """A thread that wakes takes the interpreter's lock, once a token."""
    woken, notify = [], scheduler._waiting.notify
    monkeypatch.setattr(scheduler._waiting, "notify", lambda: (woken.append(1), notify()))
    blocks.gate.release(2)
    assert scheduler.submit(session("alone"), numbers(3), 3, here=True).done()
    assert not woken
    assert scheduler.submit(session("other"), numbers(3), 3).result(patient(10)).shape == (3, 2)
    assert woken


def test_an_interruption_where_it_is_asked_leaves_the_row_as_it_was(scheduler, blocks):
    row = session("row")
    blocks.error = KeyboardInterrupt()  # type: ignore[assignment]
    blocks.gate.release()
    with pytest.raises(KeyboardInterrupt):
        scheduler.submit(row, numbers(3), 1, here=True)
    assert row.pages.length == 0
    blocks.error = None
    blocks.gate.release()
    assert scheduler.submit(row, numbers(3), 1).result(patient(10)).shape == (1, 2)


def test_steps_gather_as_long_as_it_is_worth_and_a_prompt_goes_at_once(blocks, monkeypatch):
    class UntilThree(Returns):
        def worth_s(self, present: Collection[Session], waited_s: float = 0.0) -> float:
            return 60.0 if len(present) < 3 else 0.0

    monkeypatch.setattr("fedlora.generation.scheduler.Returns", UntilThree)
    scheduler = Scheduler(blocks, chunk_tokens=64)
    try:
        blocks.gate.release(1000)
        scheduler.submit(session("long"), numbers(40), 1).result(patient(10))
        answers = [scheduler.submit(session(str(n)), numbers(1), 1) for n in range(3)]
        for answer in answers:
            answer.result(patient(10))
        assert blocks.taken == [[40], [1, 1, 1]]
        alone = scheduler.submit(session("last"), numbers(1), 1)
    finally:
        scheduler.end()  # ends what gathers, too
    with pytest.raises(GenerationRefused, match="ends"):
        alone.result(patient(10))
