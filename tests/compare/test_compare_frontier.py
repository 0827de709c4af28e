"""Frontiers and equivalence, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from simulations.studies.compare.frontier import equivalence, frontier, tost


def row(strategy, seed, bits, loss, reward, snr_db=0.0):
    return {
        **{"strategy": strategy, "snr_db": snr_db, "seed": seed, "adapter_bits": bits},
        **{"loss": loss, "reward": reward, "metric": loss},
    }


def test_who_is_beaten_at_no_more_bits_is_not_on_the_frontier():
    points = {"few": (10, 2.0, -1.0), "more": (20, 1.5, -0.5), "worse": (20, 1.6, -0.4)}
    points |= {"wasteful": (30, 1.5, -0.6), "best": (40, 1.0, -0.9)}
    rows = [row(name, seed, *own) for name, own in points.items() for seed in (1, 2)]
    table = frontier(rows)
    assert [r["strategy"] for r in table] == ["few", "more", "worse", "wasteful", "best"]
    on = {key: {r["strategy"] for r in table if r[key]} for key in table[0] if key.startswith("on")}
    assert on["on_loss_frontier"] == {"few", "more", "best"}
    assert on["on_reward_frontier"] == {"few", "worse"}


def test_a_frontier_is_over_the_seeds_that_all_have():
    rows = [row("a", seed, 1, float(seed), 0.0) for seed in (1, 2, 3)]
    rows += [row("b", seed, 1, 2.0, 0.0) for seed in (2, 3, 4)]
    rows += [row("c", 9, 1, 1.0, 0.0, snr_db=5.0), row("d", 8, 1, 1.0, 0.0, snr_db=5.0)]
    assert [(r["strategy"], r["seeds"], r["loss"]) for r in frontier(rows)] == [
        ("a", 2, 2.5),
        ("b", 2, 2.0),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_two_one_sided_tests_agree_with_the_interval_of_90_percent(seed):
    """Equal at 5% exactly where the 90% interval lies within the margin (Schuirmann 1987)."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(generator.uniform(-0.06, 0.06), 0.03, 6)
    low, high = stats.t.interval(0.9, 5, differences.mean(), stats.sem(differences))
    assert (tost(differences, 0.05) < 0.05) == (low > -0.05 and high < 0.05)


def test_a_difference_that_is_merely_not_significant_is_not_equal():
    wide, narrow = [-0.4, 0.5, -0.3, 0.2], [0.001, -0.002, 0.002, 0.0]
    rows = [row("winner", seed, 1, 1.0, 1.0) for seed in range(4)]
    for name, differences in (("wide", wide), ("narrow", narrow)):
        rows += [row(name, seed, 1, 1.0 + d, 0.0) for seed, d in enumerate(differences)]
    found = {r["strategy"]: r for r in equivalence(rows, 0.02)}
    assert stats.ttest_1samp(wide, 0.0).pvalue > 0.05
    assert (found["wide"]["equal"], found["narrow"]["equal"]) == (False, True)
    assert found["wide"]["low"] < 0 < found["wide"]["high"]
    assert equivalence([r for r in rows if r["seed"] == 0], 0.02) == []  # one seed shows nothing
