from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from support import faulty_strategies as faulty
from support.patience import patient

from fedlora.machine import cores
from fedlora.ranks import FedloraError, check_rank_strategy
from fedlora.ranks.calls import Caller, CallError


def test_a_sound_strategy_has_no_findings():
    assert check_rank_strategy(faulty.Sound()) == []


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (
            faulty.OutOfRange,
            "client edge-000: rank 99 for mlp.down_proj of layer 3 exceeds r_max 8",
        ),
        (faulty.Negative, "rank -1 for mlp.down_proj of layer 3 is below r_min 0"),
        (faulty.NotANumber, "rank nan for mlp.down_proj of layer 3 is not a whole number"),
        (faulty.Fractional, "rank 1.5 for mlp.down_proj of layer 3 is not a whole number"),
        (faulty.TooFew, "15 ranks were given; expected 16, one for each projection"),
        (faulty.DeliversTooMuch, "rank 99 for self_attn.q_proj of layer 0 exceeds r_max 8"),
        (faulty.BareRanks, "expected a RankDecision"),
        (faulty.NotADict, "allocate returned a list; expected a dict by client"),
        (faulty.ReturnsNothing, "allocate returned a NoneType; expected a dict by client"),
        (faulty.ForgetsTheLast, "client edge-003: there is no decision"),
        (faulty.InventsAClient, "client ghost: it does not take part"),
        (faulty.Raises, "allocate raised KeyError at faulty_strategies.py, line "),
        (faulty.Exits, "allocate raised SystemExit"),
        (faulty.NeedsStatistics, "with statistics, device and SNR None, allocate raised Attribute"),
        (faulty.NeedsSnr, "with statistics, device and SNR None, allocate raised TypeError"),
        (faulty.NeedsLosses, "with full reports and empty outcomes, observe raised TypeError"),
        (faulty.NeedsTwoClients, "with one client, allocate raised IndexError"),
        (faulty.KnowsItsClients, "with new clients, allocate raised KeyError"),
        (faulty.MeetsOnlyItsClients, "with new clients, observe raised KeyError"),
        (faulty.ChangesReports, "allocate changed the reports"),
        (faulty.ChangesOutcomes, "observe changed the outcomes"),
        (faulty.CountsItsCalls, "allocate decided otherwise when called again with the same state"),
        (faulty.ForgetsWhatItLearnt, "after load_state_dict the same reports and outcomes led to"),
        (faulty.KeepsASet, "state_dict cannot be stored: the state's seen is {'a'}, a set"),
        (faulty.CannotReadItsState, "load_state_dict raised RuntimeError"),
        (faulty.StateWithoutReader, "has no state but was given round; write load_state_dict"),
    ],
)
def test_a_fault_is_found_and_said_in_one_sentence(strategy, expected):
    findings = check_rank_strategy(strategy())
    assert any(expected in finding for finding in findings)
    assert all("\n" not in finding for finding in findings)
    assert len(findings) <= 2


def test_a_call_that_does_not_return_ends_the_check():
    strategy = faulty.Hangs()
    started = time.monotonic()
    findings = check_rank_strategy(strategy, time_limit_s=0.05)
    strategy.released.set()
    assert time.monotonic() - started < patient(5)
    assert findings == ["allocate took longer than 0.05 s; make it faster"]


def test_what_is_no_strategy_is_said(small):
    assert "is no strategy" in check_rank_strategy(faulty.Sound)[0]


def test_a_strategy_for_other_models_is_checked_on_its_own_space(small):
    class OnlyTwoLayers(faulty.Sound):
        def prepare(self, space):
            if len(space) != len(small):
                raise FedloraError(f"the policy is for {len(small)} projections, not {len(space)}")

    assert "the policy is for 12 projections, not 16" in check_rank_strategy(OnlyTwoLayers())[0]
    assert check_rank_strategy(OnlyTwoLayers(), small) == []


def test_what_the_machine_does_beside_a_call_does_not_count_as_the_calls_time():
    """A strategy that computes for 0.2 s keeps a limit of 0.5 s beside four others a core."""
    over = threading.Event()
    spin = "import time\nwhile True: time.monotonic()"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(4 * cores())]
    try:
        time.sleep(0.5)
        began = time.monotonic()
        assert Caller(0.5).call("allocate", partial(_compute, 0.2)) == "done"
        assert time.monotonic() - began > 0.2
        with pytest.raises(CallError, match=r"took longer than 0\.5 s"):
            Caller(0.5).call("allocate", partial(_compute, 60.0, over))
    finally:
        over.set()
        for other in others:
            other.kill()
            other.wait()


def _compute(seconds: float, over: threading.Event | None = None) -> str:
    """Take so much of a processor's time, or until it is over."""
    end = time.thread_time() + seconds
    while time.thread_time() < end and not (over and over.is_set()):
        pass
    return "done"


def test_without_the_systems_word_a_limit_follows_the_load(monkeypatch):
    monkeypatch.setattr("fedlora.ranks.calls.waited_s", lambda thread: None)
    monkeypatch.setattr("fedlora.ranks.calls.stretch", lambda: 4.0)
    assert Caller(0.2).call("allocate", lambda: time.sleep(0.4) or "done") == "done"
    with pytest.raises(CallError, match=r"took longer than 0\.2 s"):
        Caller(0.2).call("allocate", partial(time.sleep, 2.0))
