"""A budget that follows the channel spends the same total, whatever the channel and the server."""

from __future__ import annotations

import random

import pytest

from fedlora.privacy.accounting import (
    BudgetSpread,
    ChannelWeight,
    add_up,
    calibrate_sigma,
    rdp_epsilon,
    upload_cost,
)

EPSILON, DELTA, UPLOADS = 4.0, 1e-5, 12
SIGMA = calibrate_sigma(EPSILON, DELTA, UPLOADS)


def play(weights: list[float], uploads: int = UPLOADS, floor: float = 0.0) -> list[float]:
    """Return the noise of every upload that is admitted."""
    spread, spent, sigmas = BudgetSpread(SIGMA, uploads, floor), 0.0, list[float]()
    for weight in weights:
        sigma = spread.sigma(spent, len(sigmas), weight)
        if sigma is None:
            break
        spent = add_up(spent, upload_cost(sigma))
        sigmas.append(sigma)
    return sigmas


def epsilon(sigmas: list[float]) -> float:
    return rdp_epsilon(sum(upload_cost(sigma) for sigma in sigmas), DELTA)


@pytest.mark.parametrize("seed", range(20))
def test_any_weights_spend_the_total_and_never_more(seed: int) -> None:
    rng = random.Random(seed)
    sigmas = play([rng.choice([0.25, 0.5, 1.0, 2.0, 4.0]) for _ in range(UPLOADS + 5)])
    assert len(sigmas) == UPLOADS
    assert EPSILON * (1 - 1e-6) < epsilon(sigmas) <= EPSILON


def test_equal_weights_are_the_even_split() -> None:
    assert play([1.0] * UPLOADS) == pytest.approx([SIGMA] * UPLOADS, rel=1e-9)


def test_a_round_with_twice_the_weight_spends_about_twice_as_much() -> None:
    good, poor = play([2.0]), play([1.0])
    assert (poor[0] / good[0]) ** 2 == pytest.approx(2.0, rel=0.1)


def test_the_owners_floor_is_kept_and_what_it_saves_goes_to_later_uploads() -> None:
    sigmas = play([4.0] * UPLOADS, floor=SIGMA * 0.9)
    assert min(sigmas) == pytest.approx(SIGMA * 0.9)
    assert epsilon(sigmas) <= EPSILON


def test_good_rates_and_high_ranks_count_for_more() -> None:
    weight = ChannelWeight(r_max=8)
    seen = []
    for rate, rank in [(1e6, 8), (2e6, 8), (5e5, 8), (1e6, 2)]:
        weight.begin_round(rate)
        weight.told_rank(rank)
        seen.append(weight.now)
    assert seen[0] == 1.0
    assert seen[1] > 1.0 > seen[2] > seen[3] >= 0.25


@pytest.mark.parametrize("rank", [None, -1.0, 1e9, float("nan")])
def test_a_rank_that_cannot_be_counts_as_the_largest(rank: float | None) -> None:
    weight = ChannelWeight(r_max=8)
    weight.begin_round(1e6)
    weight.told_rank(rank)
    assert weight.now == 1.0
