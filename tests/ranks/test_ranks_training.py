"""What is sent and what trains are chosen apart, by rules that all strategies share."""

from __future__ import annotations

import numpy as np
import pytest

from fedlora.ranks import (
    ClientOutcome,
    ClientReport,
    FedloraError,
    check_rank_strategy,
    pack_state,
    unpack_state,
)
from strategies.airllm.strategy import AirLlm
from strategies.bandit import Bandit
from strategies.greedy import Greedy
from strategies.hold import Hold
from strategies.importance import Importance
from strategies.random_ranks import RandomRanks
from strategies.training import RULES, TrainingRule
from strategies.uniform import Uniform

ALL = [Uniform, RandomRanks, Greedy, Hold, Importance, Bandit]


def reports(space, *ranks):
    """Return clients whose budgets pay for these uniform ranks."""
    bits = space.bits(space.uniform(1))
    return {str(i): ClientReport(budget_bits=r * bits) for i, r in enumerate(ranks)}


def play(strategy, space, *rounds, arrives=True):
    """Return the decisions of rounds with these budgets, in which all deliveries arrive or none."""
    played = []
    for number, ranks in enumerate(rounds, 1):
        played.append(strategy.allocate(number, reports(space, *ranks), space))
        strategy.observe(
            number, {str(i): ClientOutcome(delivered=arrives) for i in range(len(ranks))}
        )
    return played


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("rule", RULES)
def test_strategies_of_every_rule_pass_the_check(strategy, rule):
    assert check_rank_strategy(strategy(train=rule)) == []


@pytest.mark.parametrize("strategy", [Uniform, RandomRanks, Greedy, Importance, Bandit])
def test_what_is_sent_does_not_depend_on_what_trains(strategy, small):
    sent = [
        [d.deliver for decided in play(strategy(train=rule), small, (3, 9), (1, 0.2), (5, 16))
         for d in decided.values()]
        for rule in RULES
    ]  # fmt: skip
    assert all(other == sent[0] for other in sent[1:])


def test_each_rule_trains_what_it_says(small):
    budgets = [(4, 8), (0, 2)]
    by_rule = {rule: play(Greedy(train=rule), small, *budgets) for rule in RULES}
    first, second = by_rule["delivered"]
    assert all(d.train == d.deliver for d in (*first.values(), *second.values()))
    held = by_rule["held"][1]
    assert held["0"].deliver == small.uniform(0)
    assert held["0"].train == first["0"].deliver  # it was sent nothing and has that
    assert held["1"].train == held["1"].deliver
    assert all(d.train == small.uniform(small.r_max) for d in by_rule["r_max"][1].values())
    one, other = by_rule["shared"][1].values()
    assert one.train == other.train
    # 40% of the way from the mean of 4 and 2 to the 8 that a channel has carried
    assert one.train == small.uniform(5)


def test_the_shared_rule_is_that_of_airllm(small):
    """Given the same deliveries and a plan that says 40% of the way, ranks that train are equal."""
    airllm, plan = AirLlm(), np.zeros((2, len(small), 3))
    plan[:, :, 1], plan[:, :, 2] = -0.2, 1.0
    greedy = Greedy(train="shared")
    for number, budgets in enumerate([(3, 9), (1, 0.2), (0, 0), (6, 16)], 1):
        clients = reports(small, *budgets)
        sight = airllm.look(number, clients, small)
        theirs = airllm.carry_out(number, clients, small, sight, plan)
        ours = greedy.allocate(number, clients, small)
        assert ours == theirs
        outcomes = {client: ClientOutcome(delivered=True) for client in clients}
        airllm.observe(number, outcomes)
        greedy.observe(number, outcomes)


def test_hold_sends_no_worse_adapter_until_the_old_one_is_old(small):
    sent = play(Hold(), small, (6,), (4,), (4,), (3,), (1,), (8,))
    # 4 is worse than 6, and is sent when 6 is two rounds old; 3 comes too soon after it, 1 is less
    # than half of it, and 8 is better.
    assert [decided["0"].deliver[0] for decided in sent] == [6, 0, 4, 0, 0, 8]
    assert play(Hold(least=1.0), small, (8,), (5,), (5,))[2]["0"].deliver == small.uniform(0)
    assert play(Hold(patience=1), small, (8,), (5,))[1]["0"].deliver == small.uniform(5)


def test_an_adapter_that_did_not_arrive_is_not_held(small):
    late = play(Hold(), small, (8,), (5,), arrives=False)
    assert late[1]["0"].deliver == small.uniform(5)


@pytest.mark.parametrize("rule", ["held", "shared"])
def test_what_a_round_without_delivery_decided_is_not_held(small, rule):
    """As with ``channel.deliver_every`` above 1; on the way to a checkpoint, too."""
    strategy = Hold(train=rule)
    strategy.allocate(1, reports(small, 8), small)
    again = Hold(train=rule)
    again.load_state_dict(unpack_state(*pack_state(strategy.state_dict())))
    for own in (strategy, again):
        own.observe(1, {"0": ClientOutcome(delivered=None)})
        assert own.training.held("0").ranks == ()
        assert own.allocate(2, reports(small, 5), small)["0"].deliver == small.uniform(5)


def test_where_nothing_comes_over_the_air_clients_have_what_was_decided(small):
    strategy = Greedy(train="held")
    strategy.allocate(1, {"0": ClientReport()}, small)
    strategy.observe(1, {"0": ClientOutcome(delivered=None)})
    assert strategy.training.held("0").ranks == small.uniform(small.r_max)


def test_greedy_may_send_in_every_second_round_alone(small):
    sent = [decided["0"].deliver[0] for decided in play(Greedy(every=2), small, (4,), (9,), (3,))]
    assert sent == [4, 0, 3]


@pytest.mark.parametrize(("every", "due"), [(2, 2), (3, 2), (1, 3), (4, 1)])
def test_greedy_sends_in_the_next_round_in_which_adapters_are_due(small, every, due):
    """As with ``channel.deliver_every``; by way of a checkpoint before each round."""
    strategy, arrived = Greedy(every=every), []
    for number in range(1, 13):
        again = Greedy(every=every)
        again.load_state_dict(unpack_state(*pack_state(strategy.state_dict())))
        strategy = again
        decided = strategy.allocate(number, reports(small, 4), small)["0"].deliver
        sends = any(decided) and number % due == 0
        strategy.observe(number, {"0": ClientOutcome(delivered=True if sends else None)})
        arrived += [number] if sends else []
    expected, last = [], 0
    for number in range(due, 13, due):
        if not last or number - last >= every:
            expected, last = [*expected, number], number
    assert arrived == expected and len(arrived) > 1


@pytest.mark.parametrize(
    "make", [Hold, lambda: Greedy(train="shared"), lambda: Bandit(train="held")]
)
def test_a_strategy_goes_on_from_its_state_with_what_clients_have(small, make):
    whole = play(make(), small, (8, 3), (2, 2), (5, 1))
    broken = make()
    play(broken, small, (8, 3), (2, 2))
    again = make()
    again.load_state_dict(unpack_state(*pack_state(broken.state_dict())))
    assert again.allocate(3, reports(small, 5, 1), small) == whole[2]


def test_a_state_of_before_there_were_rules_is_taken(small):
    old = {"sensitivity": None, "uncertainty": None}
    Importance().load_state_dict(old)
    Greedy().load_state_dict({})


def test_rules_that_contradict_or_do_not_exist_are_refused():
    with pytest.raises(FedloraError, match="'shared' and train_at_r_max is true; leave one out"):
        TrainingRule("shared", True)
    with pytest.raises(FedloraError, match=r"ranks\.options.train is 'all'"):
        Greedy(train="all")
    with pytest.raises(FedloraError, match=r"ranks\.options.every is 0"):
        Greedy(every=0)
