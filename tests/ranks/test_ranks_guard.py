from __future__ import annotations

import copy
import logging
import time

import pytest
from support import faulty_strategies as faulty
from support.patience import patient

from fedlora.ranks import (
    ClientOutcome,
    ClientReport,
    FedloraError,
    GuardedStrategy,
    RankDecision,
    RankStrategy,
    pack_state,
)

CLIENTS = {"b": ClientReport(), "a": ClientReport()}


class Scripted(RankStrategy):
    """Round t's decisions come from the t-th function."""

    def __init__(self, *rounds):
        self.rounds = rounds

    def allocate(self, round, clients, space):
        return self.rounds[round - 1](clients, space)


def rank(r):
    return lambda clients, space: dict.fromkeys(clients, RankDecision([r] * len(space)))


class Mute(Exception):
    def __str__(self):
        raise RuntimeError


class Trap(dict):
    def get(self, key, default=None):
        raise LookupError("x" * 10_000)


def mute(clients, space):
    raise Mute


def fail(clients, space):
    raise ZeroDivisionError("no clients\nhere")


def test_valid_decisions_pass_unchanged_and_sorted(small):
    guarded = GuardedStrategy(Scripted(rank(3)))
    decisions = guarded.allocate(1, CLIENTS, small)
    assert list(decisions.items()) == [(c, RankDecision(small.uniform(3))) for c in ("a", "b")]
    assert guarded.complaints == []


def test_the_strategy_sees_the_clients_in_the_order_of_their_names(small):
    seen = []
    strategy = Scripted(lambda clients, space: seen.extend(clients) or rank(1)(clients, space))
    GuardedStrategy(strategy).allocate(1, CLIENTS, small)
    assert seen == ["a", "b"]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (rank(12), "rank 12 for self_attn.q_proj of layer 0 exceeds r_max 8"),
        (rank(float("nan")), "rank nan for self_attn.q_proj of layer 0 is not a whole number"),
        (lambda clients, space: dict.fromkeys(clients, RankDecision([1])), "1 ranks were given"),
        (lambda clients, space: dict.fromkeys(clients), "there is no decision"),
        (lambda clients, space: 7, "allocate returned a int; expected a dict by client"),
        (fail, "allocate raised ZeroDivisionError"),
        (mute, "allocate raised Mute at test_ranks_guard.py, line"),
        (lambda clients, space: Trap(clients), "allocate raised LookupError at test_ranks_guard"),
        (rank(10**400), "rank 1000000"),
    ],
)
def test_the_run_goes_on_with_the_last_valid_ranks(small, bad, problem):
    guarded = GuardedStrategy(Scripted(rank(3), bad, rank(2)))
    assert guarded.allocate(1, CLIENTS, small)["a"].train == small.uniform(3)
    assert guarded.allocate(2, CLIENTS, small)["a"].train == small.uniform(3)
    assert guarded.allocate(3, CLIENTS, small)["a"].train == small.uniform(2)
    first = guarded.complaints[0]
    assert problem in str(first)
    assert "last valid ranks" in str(first)
    assert first.round == 2
    assert "\n" not in str(first)
    assert len(str(first)) < 600


def test_numbers_for_identifiers_are_told_from_clients_that_take_no_part(small):
    numbered = Scripted(lambda clients, space: {int(c): RankDecision([1]) for c in clients})
    guarded = GuardedStrategy(numbered)
    guarded.allocate(1, {"0": ClientReport()}, small)
    (complaint,) = guarded.complaints
    assert complaint.problem.startswith(
        "its key is 0, a int; expected the identifiers as they were"
    )


def test_before_any_valid_decision_the_ranks_are_the_smallest(small):
    guarded = GuardedStrategy(Scripted(fail))
    decisions = guarded.allocate(1, CLIENTS, small)
    assert decisions == dict.fromkeys(CLIENTS, RankDecision(small.uniform(0)))


def test_only_the_client_with_the_fault_keeps_its_old_ranks(small):
    def one_bad(clients, space):
        return {"a": RankDecision(space.uniform(5)), "b": RankDecision([-1] * len(space))}

    guarded = GuardedStrategy(Scripted(rank(1), one_bad))
    guarded.allocate(1, CLIENTS, small)
    decisions = guarded.allocate(2, CLIENTS, small)
    assert decisions["a"].train == small.uniform(5)
    assert decisions["b"].train == small.uniform(1)
    assert [complaint.client for complaint in guarded.complaints] == ["b"]


def test_an_unknown_client_is_named_and_left_out(small):
    guarded = GuardedStrategy(faulty.InventsAClient())
    assert set(guarded.allocate(1, CLIENTS, small)) == {"a", "b"}
    assert str(guarded.complaints[0]).startswith("round 1: client ghost: it does not take part")


def test_a_slow_strategy_is_not_waited_for_and_not_called_again_until_it_returns(small):
    strategy = faulty.Hangs()
    guarded = GuardedStrategy(strategy, time_limit_s=0.05)
    started = time.monotonic()
    assert guarded.allocate(1, CLIENTS, small)["a"].train == small.uniform(0)
    assert guarded.allocate(2, CLIENTS, small)["a"].train == small.uniform(0)
    assert time.monotonic() - started < patient(5)
    assert "took longer than 0.05 s" in str(guarded.complaints[0])
    assert "an earlier call has not returned yet" in str(guarded.complaints[1])
    strategy.released.set()
    deadline = time.monotonic() + patient(5)
    while guarded.allocate(3, CLIENTS, small)["a"].train != small.uniform(1):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_strategy_that_exits_does_not_end_the_run(small):
    guarded = GuardedStrategy(faulty.Exits())
    guarded.allocate(1, CLIENTS, small)
    assert "SystemExit" in str(guarded.complaints[0])


def test_a_strategy_that_fails_to_learn_is_named_and_the_run_goes_on(small):
    guarded = GuardedStrategy(faulty.NeedsLosses())
    guarded.observe(4, {"a": ClientOutcome()})
    assert str(guarded.complaints[0]).startswith("round 4: observe raised TypeError")


def test_the_callers_reports_and_outcomes_cannot_be_changed(small):
    outcomes = {"a": ClientOutcome(bits={"down": {"adapter": 3}})}
    before = copy.deepcopy(outcomes)
    clients = dict(CLIENTS)
    GuardedStrategy(faulty.ChangesReports()).allocate(1, clients, small)
    GuardedStrategy(faulty.ChangesOutcomes()).observe(1, outcomes)
    assert clients == CLIENTS
    assert outcomes == before


def test_one_line_is_logged_for_a_fault_of_many_clients(small, caplog):
    clients = {f"edge-{i}": ClientReport() for i in range(100)}
    with caplog.at_level(logging.WARNING, "fedlora"):
        guarded = GuardedStrategy(faulty.OutOfRange())
        guarded.allocate(1, clients, small)
    assert len(guarded.complaints) == 100
    assert len(caplog.messages) == 1
    assert "OutOfRange: round 1: client edge-0: rank 99" in caplog.messages[0]
    assert "(and 99 more clients)" in caplog.messages[0]


def test_last_valid_ranks_and_the_strategys_state_survive_a_checkpoint(small):
    class Learner(Scripted):
        value = 0

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    first = GuardedStrategy(Learner(rank(3)))
    first.allocate(1, CLIENTS, small)
    first.strategy.value = 7
    state = first.state_dict()
    pack_state(state)
    second = GuardedStrategy(Learner(fail, fail))
    second.load_state_dict(state)
    assert second.strategy.value == 7
    assert second.allocate(2, CLIENTS, small)["b"].train == small.uniform(3)


@pytest.mark.parametrize("strategy", [faulty.KeepsASet, faulty.CannotReadItsState])
def test_a_state_that_cannot_be_stored_is_named_and_the_run_goes_on(strategy):
    guarded = GuardedStrategy(strategy())
    state = guarded.state_dict()
    pack_state(state)
    if strategy is faulty.KeepsASet:
        assert "seen is {'a'}, a set" in str(guarded.complaints[0])
        guarded.load_state_dict(state)
        assert "it starts anew" in str(guarded.complaints[1])


def test_a_refusal_of_the_space_stops_the_run(small):
    class Refuses(faulty.Sound):
        def prepare(self, space):
            raise FedloraError("wrong model")

    with pytest.raises(FedloraError, match="wrong model"):
        GuardedStrategy(Refuses()).prepare(small)


def test_an_error_before_the_first_round_is_one_sentence(small):
    class CannotStart(faulty.CannotReadItsState):
        def prepare(self, space):
            raise OSError("no policy file")

    guarded = GuardedStrategy(CannotStart())
    with pytest.raises(FedloraError, match=r"prepare of strategy CannotStart raised OSError at"):
        guarded.prepare(small)
    with pytest.raises(FedloraError, match=r"load_state_dict of .* raised RuntimeError"):
        guarded.load_state_dict(guarded.state_dict())
