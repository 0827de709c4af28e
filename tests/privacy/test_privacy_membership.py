from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import binom

from fedlora.errors import FedloraError
from simulations.audit.attacks.auc import auc
from simulations.audit.attacks.canaries import epsilon_lower_bound
from simulations.audit.attacks.membership import (
    calibrated_scores,
    likelihood_ratio_scores,
    loss_scores,
)


def test_reference_models_find_members_among_easy_and_hard_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, models, gain = 2000, 4, 0.3
    member = torch.arange(samples) < samples // 2
    difficulty = 2 * torch.rand(samples, generator=generator) + 0.5

    def losses() -> torch.Tensor:
        return difficulty + 0.05 * torch.randn(samples, generator=generator)

    own = losses() - gain * member
    references = torch.stack([losses() for _ in range(models)])
    alone = auc(loss_scores(own), member).value
    calibrated = auc(calibrated_scores(own, references), member).value
    ratio = auc(likelihood_ratio_scores(own, references), member).value
    assert alone < 0.65
    assert calibrated > 0.99 and ratio > 0.9
    untrained = losses()
    nothing = auc(calibrated_scores(untrained, references), member)
    assert nothing.low < 0.5 < nothing.high


def test_the_likelihood_ratio_compares_logits_of_the_probability() -> None:
    p = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    outside = torch.tensor([[0.8, 0.5, 0.02]], dtype=torch.float64)
    found = likelihood_ratio_scores(-p.log(), -outside.log())
    torch.testing.assert_close(found, torch.logit(p) - torch.logit(outside[0]))


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_bounded_below_its_epsilon_and_near_it(epsilon: float) -> None:
    canaries, rate, bounds = 2000, 1 / (1 + math.exp(-epsilon)), []
    for seed in range(40):
        correct = int(np.random.default_rng(seed).binomial(canaries, rate))
        bounds.append(epsilon_lower_bound(canaries, canaries, correct, delta=0.0))
    assert sum(bound > epsilon for bound in bounds) <= 6  # of 40 at 95% confidence
    assert np.median(bounds) > epsilon - 0.25


def test_the_bound_with_delta_zero_is_clopper_and_pearsons() -> None:
    found = epsilon_lower_bound(100, 100, 80, delta=0.0, confidence=0.95)
    rate = 1 / (1 + math.exp(-found))
    assert binom.sf(79, 100, rate) == pytest.approx(0.05, rel=1e-4)


def test_a_coin_proves_nothing_and_delta_only_weakens() -> None:
    assert epsilon_lower_bound(100, 50, 27, delta=1e-5) == 0.0
    strict, loose = (epsilon_lower_bound(200, 200, 170, delta=d) for d in (0.0, 1e-3))
    assert loose < strict
    # a Gaussian mechanism at epsilon 8 cannot be refuted at 8 by what its best attack guesses
    correct = int(1000 * ndtr(1 / 1.276))
    assert epsilon_lower_bound(1000, 1000, correct, delta=1e-5) < 8.0


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FedloraError, match="60 of 50 guesses"):
        epsilon_lower_bound(100, 50, 60, delta=1e-5)
