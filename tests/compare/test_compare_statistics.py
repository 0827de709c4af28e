from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from simulations.studies.compare.reward import client_rewards, losses_by_round, mean_reward
from simulations.studies.compare.statistics import (
    BEST_FIXED,
    holm,
    interval,
    p_value,
    paired,
    winners,
    with_best_fixed,
)


def row(strategy, snr_db, seed, reward, **more):
    return {
        "strategy": strategy,
        "snr_db": snr_db,
        "seed": seed,
        "reward": reward,
        "metric": 5.0,
        "adapter_bits": 100,
        **more,
    }


def test_the_interval_is_that_of_students_t():
    values = [0.3, 0.5, 0.1, 0.9]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx((0.45, low, high))


def test_one_value_has_no_finite_interval():
    assert interval([2.0]).high == np.inf


def test_holms_correction_equals_the_textbook_example():
    # As R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_differences_are_paired_by_seed():
    first = [row("a", 0, 1, 1.0), row("a", 0, 2, 5.0)]
    second = [row("b", 0, 2, 4.5), row("b", 0, 1, 0.8), row("b", 0, 3, 9.0)]
    assert paired(first, second, "reward") == pytest.approx([0.2, 0.5])
    assert p_value([0.2, 0.5, 0.4]) == pytest.approx(stats.ttest_rel([1.2, 2.5, 3.4], [1, 2, 3])[1])


def test_the_best_fixed_rank_is_chosen_at_each_snr():
    rows = [
        row(f"uniform(r={r})", snr, seed, -abs(r - best))
        for snr, best in ((0, 2), (10, 3))
        for r in (1, 2, 3)
        for seed in (1, 2)
    ]
    fixed = with_best_fixed([*rows, row("greedy", 0, 1, 0.0)])
    assert {(r["strategy"], r["snr_db"], r.get("chosen")) for r in fixed} == {
        ("greedy", 0, None),
        (BEST_FIXED, 0, "uniform(r=2)"),
        (BEST_FIXED, 10, "uniform(r=3)"),
    }


def test_the_winner_has_the_highest_mean_reward_and_is_compared_with_the_second():
    rows = [
        row(s, 5, seed, base + 0.1 * seed)
        for s, base in (("a", 0), ("b", 2), ("c", 1.5))
        for seed in range(4)
    ]
    (found,) = winners(rows)
    assert (found["winner"], found["second"], found["seeds"]) == ("b", "c", 4)
    assert found["difference"] == pytest.approx(0.5)


def test_a_loss_that_falls_for_everybody_is_no_reward():
    seconds = {"0": 0.5}
    early = client_rewards({"0": 3.0}, {"0": 2.5}, seconds, 1.0, 0.2)
    late = client_rewards({"0": 1.5}, {"0": 1.0}, seconds, 1.0, 0.2)
    assert early["0"].value == pytest.approx(late["0"].value) == pytest.approx(-0.5 - 0.1)
    assert mean_reward([early, late]) == pytest.approx(-0.6)


def test_the_reward_asks_for_losses_that_are_private():
    rounds = [{"round": 1, "clients": {"0": {"loss": None}}}]
    with pytest.raises(ValueError, match="round 1 has clients without held-out loss"):
        losses_by_round(rounds)


def test_strategies_with_different_seeds_are_judged_by_those_that_both_have():
    # Seed 9 was hard, and only "a" met it; on the seed that both have "a" is better.
    rows = [row("a", 0, 1, 1.0), row("a", 0, 9, -9.0), row("b", 0, 1, 0.5)]
    (found,) = winners(rows)
    assert (found["winner"], found["second"], found["seeds"]) == ("a", "b", 1)
    assert (found["reward"], found["second_reward"]) == (1.0, 0.5)
    assert found["difference"] == pytest.approx(0.5)


def test_of_strategies_that_share_no_seed_none_wins():
    """As in a comparison that was broken off when each had ended with another seed."""
    rows = [row("a", 0, 1, 1.0), row("b", 0, 2, 0.5), row("a", 5, 1, 1.0), row("b", 5, 1, 0.5)]
    assert [found["snr_db"] for found in winners(rows)] == [5]
