"""A forward waits for devices that will be there in a moment, where that is worth it."""

from __future__ import annotations

import gc

import pytest

from fedlora.generation.pages import RowPages
from fedlora.generation.returns import Returns
from fedlora.generation.sessions import Session


class Clock:
    """A clock that a test turns."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def session(name: str) -> Session:
    return Session(name, name, "v", (), RowPages(), 0.0)


def known(clock: Clock, pauses: list[float], forward: float) -> tuple[Returns, list[Session]]:
    """Devices with these pauses, all answered now, and forwards of so many seconds."""
    returns, sessions = Returns(clock), [session(str(n)) for n in range(len(pauses))]
    for one, pause in zip(sessions, pauses, strict=True):
        clock.now = 0.0
        returns.answered(one)
        clock.now = pause
        returns.came(one)
    returns.took(forward)
    clock.now = 100.0
    for one in sessions:
        returns.answered(one)
    return returns, sessions


def test_the_best_wait_is_the_one_of_all_subsets_that_spares_most():
    clock = Clock()
    pauses = [0.01, 0.02, 0.025, 0.03, 0.09]
    returns, sessions = known(clock, pauses, forward=0.06)
    clock.now += 0.01
    left = [pause - 0.01 for pause in pauses[1:]]
    spared = {m: (m + 1) * 0.06 - (m + 1) * left[m - 1] for m in range(1, 5)}
    best = max(spared, key=spared.__getitem__)
    assert best == 3 and spared[best] > 0
    assert returns.worth_s(sessions[:1]) == pytest.approx(left[best - 1])


def test_many_do_not_wait_for_one_whose_way_is_nearly_a_forward():
    clock = Clock()
    returns, sessions = known(clock, [0.0] * 7 + [0.03], forward=0.06)
    assert returns.worth_s(sessions[:7]) == 0.0
    returns, sessions = known(clock, [0.0] + [0.03] * 7, forward=0.06)
    assert returns.worth_s(sessions[:1]) == pytest.approx(0.03)


def test_nobody_waits_for_a_device_over_a_long_link_nor_for_one_that_is_late_or_gone():
    clock = Clock()
    returns, sessions = known(clock, [0.01, 0.5], forward=0.06)
    assert returns.worth_s(sessions[:1]) == 0.0
    assert 0 < returns.worth_s(sessions[1:]) < 0.06
    clock.now += 0.021  # twice its pause has passed
    assert returns.worth_s(sessions[1:]) == 0.0
    returns, sessions = known(clock, [0.01, 0.01], forward=0.06)
    assert returns.worth_s(sessions[:1]) > 0
    del sessions[1]
    gc.collect()
    assert returns.worth_s(sessions[:1]) == 0.0


@pytest.mark.parametrize("pause", [0.03, 0.09, 0.15, 0.21])
def test_a_forward_waits_for_less_than_it_takes_however_late_the_others_are(pause):
    """Here one other, who wrote on until now and does not come back."""
    clock, forward = Clock(), 0.06
    for late in range(0, 60):
        returns, sessions = known(clock, [0.01, pause], forward)
        clock.now += 0.01 * late
        waited = 0.0
        while (seconds := returns.worth_s(sessions[:1], waited)) > 0:
            clock.now += seconds
            waited += seconds
        assert waited < forward, late


def test_a_first_token_waits_for_nobody():
    returns = Returns(Clock())
    assert returns.worth_s([session("a")]) == 0.0
