from __future__ import annotations

import numpy as np
import pytest
from peft import AdaLoraConfig
from peft.tuners.adalora import RankAllocator
from torch import nn, tensor

from fedlora.ranks import (
    ClientOutcome,
    ClientReport,
    DataStatistics,
    FedloraError,
    RankDecision,
    check_rank_strategy,
    pack_state,
    unpack_state,
)
from strategies.bandit import Bandit
from strategies.greedy import Greedy
from strategies.hold import Hold
from strategies.importance import Importance
from strategies.random_ranks import RandomRanks
from strategies.uniform import Uniform

ALL = [Uniform, RandomRanks, Greedy, Hold, Importance, Bandit]


def reports(space, *uniform_ranks):
    """Return clients whose budgets pay for these uniform ranks."""
    unit_bits = space.bits(space.uniform(1))
    return {
        f"edge-{i}": ClientReport(budget_bits=r * unit_bits) for i, r in enumerate(uniform_ranks)
    }


@pytest.mark.parametrize("strategy", ALL)
def test_strategies_pass_the_check(strategy, opt_125m):
    assert check_rank_strategy(strategy()) == []
    assert check_rank_strategy(strategy(), opt_125m) == []


@pytest.mark.parametrize("strategy", [Greedy, Hold, Importance, RandomRanks, Bandit])
def test_delivered_ranks_keep_to_the_budget_and_may_be_0(strategy, small):
    clients = reports(small, 0, 0.1, 1.4, 3.5, 7.3)
    decisions = strategy().allocate(1, clients, small)
    for client, report in clients.items():
        assert small.bits(decisions[client].deliver) <= report.budget_bits
    assert decisions["edge-0"].deliver == small.uniform(0)
    assert sum(decisions["edge-4"].deliver) > 0


@pytest.mark.parametrize("strategy", [RandomRanks, Bandit])
def test_the_seed_decides_and_the_other_clients_do_not(strategy, small):
    clients = reports(small, 2.5, 3.5, 5.5, 6.5)
    decisions = strategy(seed=1).allocate(3, clients, small)
    assert strategy(seed=1).allocate(3, clients, small) == decisions
    alone = {"edge-2": clients["edge-2"]}
    assert strategy(seed=1).allocate(3, alone, small)["edge-2"] == decisions["edge-2"]
    others = [strategy(seed=s).allocate(3, clients, small) for s in (2, 3)]
    assert decisions not in others


def test_uniform_gives_r_or_r_max_and_refuses_more(small):
    clients = reports(small, 0, 1)
    assert Uniform().allocate(1, clients, small)["edge-0"].train == small.uniform(8)
    assert Uniform(r=2).allocate(1, clients, small)["edge-1"].train == small.uniform(2)
    with pytest.raises(FedloraError, match="rank 12 exceeds r_max 8"):
        Uniform(r=12).prepare(small)


def test_random_ranks_are_uniform_over_all_ranks_if_cost_does_not_count(opt_1_3b):
    clients = reports(opt_1_3b, *range(100))
    decisions = RandomRanks(within_budget=False).allocate(1, clients, opt_1_3b)
    counts = np.bincount(np.concatenate([d.train for d in decisions.values()]), minlength=17)
    expected = 14_400 / 17
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_greedy_leaves_no_room_for_one_more_rank(opt_1_3b):
    clients = reports(opt_1_3b, 1.40, 3.53, 7.27, 12.22)
    for client, decision in Greedy().allocate(1, clients, opt_1_3b).items():
        spare = clients[client].budget_bits - opt_1_3b.bits(decision.deliver)
        assert 0 <= spare < 32 * min(opt_1_3b.unit_parameters)
        assert decision.train == decision.deliver


def test_greedy_keeps_its_margin(opt_1_3b):
    (decision,) = Greedy(fraction=0.5).allocate(1, reports(opt_1_3b, 8), opt_1_3b).values()
    assert decision.deliver == opt_1_3b.uniform(4)


@pytest.mark.parametrize("strategy", [Greedy, Importance, Bandit])
def test_all_components_can_train_while_few_are_delivered(strategy, small):
    made = strategy(train_at_r_max=True)
    (decision,) = made.allocate(1, reports(small, 2), small).values()
    assert decision.train == small.uniform(8)
    assert small.bits(decision.deliver) <= small.bits(small.uniform(2))


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (Greedy, {"fraction": 1.5}),
        (Importance, {"even": -0.1}),
        (Importance, {"beta2": 2.0}),
        (Bandit, {"fractions": []}),
        (Bandit, {"fractions": [2.0]}),
        (Bandit, {"discount": 0.0}),
    ],
)
def test_options_out_of_range_are_refused(strategy, options):
    with pytest.raises(FedloraError, match=next(iter(options))):
        strategy(**options)


def test_sensitivity_is_smoothed_as_pefts_adalora_does():
    strategy = Importance(beta1=0.7, beta2=0.8)
    model = nn.Module()
    model.lora_A_default = nn.Parameter(tensor([1.0, 1.0]))
    config = AdaLoraConfig(beta1=0.7, beta2=0.8, total_step=9)
    allocator = RankAllocator(model, config, "default")
    for round_, now in enumerate([(0.5, 2.0), (1.5, 0.0), (0.25, 1.0)], 1):
        strategy.observe(round_, {"a": ClientOutcome(sensitivity=now), "b": ClientOutcome()})
        model.lora_A_default.grad = tensor(now)  # the parameter is 1, so abs(w * grad) = grad
        allocator.update_ipt(model)
        (name,) = allocator.exp_avg_ipt
        np.testing.assert_allclose(
            strategy.sensitivity * strategy.uncertainty, allocator._element_score(name), rtol=1e-6
        )


def test_sensitive_projections_get_more_rank_at_the_same_cost(small):
    clients = reports(small, 3)
    even = Importance().allocate(1, clients, small)["edge-0"].deliver
    strategy = Importance()
    sensitivity = tuple(1e-3 if i in (2, 7) else 1e-5 for i in range(len(small)))
    strategy.observe(1, {"edge-0": ClientOutcome(sensitivity=sensitivity)})
    ranks = strategy.allocate(2, clients, small)["edge-0"].deliver
    assert np.ptp(even) == 0
    assert all(ranks[i] > 3 for i in (2, 7))
    assert max(r for i, r in enumerate(ranks) if i not in (2, 7)) <= 3
    spare = clients["edge-0"].budget_bits - small.bits(ranks)
    assert 0 <= spare < 32 * min(small.unit_parameters)


def test_a_sensitivity_of_0_everywhere_leaves_the_spread_even(small):
    strategy = Importance(even=0.0)
    strategy.observe(1, {"edge-0": ClientOutcome(sensitivity=(0.0,) * len(small))})
    (decision,) = strategy.allocate(2, reports(small, 3), small).values()
    assert decision == RankDecision(small.uniform(3))


def simulate(strategy, space, *, losses, rounds=60, clients=8, seed=0):
    """Return late deliveries and mean delivered rank of the last half, where budgets err.

    The reported budget is the true one times a log-normal error of 1 dB, so that a strategy which
    trusts it is late half the time.
    """
    generator = np.random.default_rng(seed)
    late, delivered_rank = [], []
    for round_ in range(1, rounds + 1):
        true = reports(space, *generator.uniform(1, 7, clients))
        error = 10 ** (0.1 * generator.standard_normal(clients))
        told = {
            client: ClientReport(None, DataStatistics(9.0), budget_bits=report.budget_bits * factor)
            for (client, report), factor in zip(true.items(), error, strict=True)
        }
        decisions = strategy.allocate(round_, told, space)
        outcomes = {}
        for client, decision in decisions.items():
            in_time = bool(space.bits(decision.deliver) <= true[client].budget_bits)
            rank = decision.deliver.mean if in_time else 0.0
            loss = 3.0 - 0.01 * round_  # falls whatever the ranks are
            after = loss - 0.02 * np.log2(1 + rank) + 0.005 * generator.standard_normal()
            outcomes[client] = ClientOutcome(
                loss_before=loss if losses else None,
                loss_after=float(after) if losses else None,
                delivered=in_time,
            )
            late.append(not in_time)
            delivered_rank.append(rank)
        strategy.observe(round_, outcomes)
    half = len(late) // 2
    return np.mean(late[half:]), np.mean(delivered_rank[half:])


@pytest.mark.parametrize("losses", [True, False])
def test_the_bandit_learns_how_much_of_a_budget_holds(small, losses):
    trusting = np.mean([simulate(Greedy(), small, losses=losses, seed=s) for s in range(3)], axis=0)
    learnt = np.mean([simulate(Bandit(s), small, losses=losses, seed=s) for s in range(3)], axis=0)
    assert trusting[0] > 0.4
    assert learnt[0] < 0.15
    assert learnt[1] > 1.15 * trusting[1]


def test_the_bandit_goes_on_from_its_state_as_if_nothing_had_happened(small):
    whole, first = Bandit(4), Bandit(4)
    simulate(whole, small, losses=True, rounds=5)
    simulate(first, small, losses=True, rounds=5)
    resumed = Bandit(4)
    resumed.load_state_dict(unpack_state(*pack_state(first.state_dict())))
    assert simulate(resumed, small, losses=False, seed=1) == simulate(
        whole, small, losses=False, seed=1
    )


def test_without_news_of_a_delivery_the_bandit_learns_nothing(small):
    strategy = Bandit(discount=1.0)
    before = strategy.precision.copy()
    strategy.allocate(1, reports(small, 3), small)
    strategy.observe(1, {"edge-0": ClientOutcome(delivered=None), "who": ClientOutcome()})
    np.testing.assert_array_equal(strategy.precision, before)
