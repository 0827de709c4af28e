from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedlora.ranks import FedloraError, RankSpace, fit_budget


def add_one(ranks: tuple[int, ...], index: int) -> list[int]:
    return [rank + (i == index) for i, rank in enumerate(ranks)]


def one_rank_at_a_time(space: RankSpace, budget_bits: float, weights: np.ndarray) -> list[int]:
    """D'Hondt's rule as the textbook writes it; the weights must not tie."""
    ranks = [space.r_min] * len(space)
    while True:
        open_seats = [
            index
            for index in range(len(space))
            if ranks[index] < space.r_max and space.bits(add_one(ranks, index)) <= budget_bits
        ]
        if not open_seats:
            return ranks
        ranks[max(open_seats, key=lambda index: weights[index] / (ranks[index] + 1))] += 1


@pytest.mark.parametrize("weighted", [False, True])
def test_the_budget_is_kept_and_not_one_more_rank_fits(opt_1_3b, weighted):
    generator = np.random.default_rng(0)
    most = opt_1_3b.bits(opt_1_3b.uniform(opt_1_3b.r_max))
    for budget in generator.uniform(0, most, 20):
        weights = generator.exponential(size=len(opt_1_3b)) if weighted else None
        ranks = fit_budget(opt_1_3b, budget, weights)
        assert opt_1_3b.bits(ranks) <= budget
        for index, rank in enumerate(ranks):
            full = rank == opt_1_3b.r_max
            assert full or opt_1_3b.bits(add_one(ranks, index)) > budget


def test_a_budget_that_fits_to_the_bit_is_used_whole(small):
    for r in range(1, small.r_max + 1):
        exact = small.bits(small.uniform(r))
        assert fit_budget(small, exact) == small.uniform(r)
        assert small.bits(fit_budget(small, exact - 1)) < exact


def test_ranks_are_those_of_dhondts_rule(small):
    generator = np.random.default_rng(1)
    for r_min in (0, 1):
        space = replace(small, r_min=r_min)
        low, high = space.bits(space.uniform(r_min)), space.bits(space.uniform(space.r_max))
        for budget in generator.uniform(low, high, 20):
            weights = generator.exponential(size=len(space))
            assert list(fit_budget(space, budget, weights)) == one_rank_at_a_time(
                space, budget, weights
            )


@pytest.mark.parametrize(
    ("snr_db", "mean_rank"), [(-5, 1.40), (0, 3.53), (5, 7.27), (10, 12.22), (15, 16.0)]
)
def test_the_mean_rank_is_the_largest_uniform_rank_with_its_fraction(opt_1_3b, snr_db, mean_rank):
    ranks = fit_budget(opt_1_3b, 100e6 * math.log2(1 + 10 ** (snr_db / 10)))
    assert ranks.mean == pytest.approx(mean_rank, abs=0.02)


def test_a_remainder_is_spread_evenly_over_the_depth(opt_1_3b):
    ranks = np.array(fit_budget(opt_1_3b, 1.5 * opt_1_3b.bits(opt_1_3b.uniform(1))))
    thirds = ranks.reshape(3, -1).mean(axis=1)
    assert set(ranks) == {1, 2}
    assert np.ptp(thirds) < 0.1


def test_no_limit_gives_r_max_and_nothing_gives_r_min(small):
    assert fit_budget(small, None) == small.uniform(8)
    assert fit_budget(small, math.inf) == small.uniform(8)
    assert fit_budget(small, 0) == small.uniform(0)
    assert fit_budget(replace(small, r_min=2), 0) == small.uniform(2)
    assert fit_budget(replace(small, r_min=8), 0) == small.uniform(8)


def test_projections_of_weight_0_get_only_what_the_others_leave(small):
    weights = [1.0] + [0.0] * 11
    first = small.bits([8] + [0] * 11)
    assert list(fit_budget(small, first, weights)) == [8] + [0] * 11
    both = fit_budget(small, 2 * first, weights)
    assert both[0] == 8
    assert 0 < small.bits([0, *both[1:]]) <= first


@pytest.mark.parametrize("weights", [[1.0], [-1.0] * 12, [math.nan] * 12])
def test_weights_that_do_not_fit_are_refused(small, weights):
    with pytest.raises(FedloraError, match="give 12 finite numbers >= 0"):
        fit_budget(small, 100, weights)
