from __future__ import annotations

import math

import pytest
from opacus.accountants.utils import get_noise_multiplier

from fedlora.config import PrivacyPolicy
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import (
    calibrate_sigma,
    epsilon_of,
    gradient_sigma,
    planned_uploads,
    rho_budget,
)
from fedlora.privacy.accounting.rdp import rho

DELTA = 1e-5


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("delta", [1e-8, 1e-5, 1e-2])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
def test_calibration_inverts_accounting_from_below(
    epsilon: float, delta: float, tight: bool
) -> None:
    for uploads in (1, 7, 500):
        sigma = calibrate_sigma(epsilon, delta, uploads, tight=tight)
        spent = epsilon_of(uploads * rho(sigma), delta, tight=tight)
        assert spent == pytest.approx(epsilon, rel=1e-6)
        assert spent <= epsilon


@pytest.mark.parametrize(
    ("epsilon", "noise_multiplier"), [(1, 40.4539), (2, 21.4911), (4, 11.5757), (8, 6.3767)]
)
def test_noise_for_a_hundred_uploads_meets_the_anchors(
    epsilon: float, noise_multiplier: float
) -> None:
    zero_out = calibrate_sigma(epsilon, DELTA, 100, adjacency="zero_out")
    assert zero_out == pytest.approx(noise_multiplier, abs=1e-3)
    replace_one = calibrate_sigma(epsilon, DELTA, 100)
    assert replace_one == pytest.approx(2 * zero_out)


def test_noise_agrees_with_opacus_bisection() -> None:
    reference = get_noise_multiplier(
        target_epsilon=3.0,
        target_delta=DELTA,
        sample_rate=1.0,
        steps=10,
        accountant="rdp",
        epsilon_tolerance=1e-4,
    )
    ours = calibrate_sigma(3.0, DELTA, 10, adjacency="zero_out")
    assert ours == pytest.approx(reference, rel=1e-3)


def test_tight_calibration_needs_less_noise() -> None:
    assert calibrate_sigma(8.0, DELTA, 1) == pytest.approx(1.2753, abs=1e-3)
    assert calibrate_sigma(8.0, DELTA, 1, tight=True) == pytest.approx(1.2005, abs=1e-3)


def test_a_target_below_what_the_orders_can_state_is_refused() -> None:
    with pytest.raises(FedloraError, match=r"epsilon 0\.001 .* raise"):
        rho_budget(0.001, DELTA)
    assert epsilon_of(rho_budget(0.001, DELTA, tight=True), DELTA, tight=True) <= 0.001


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan, 51.0])
def test_a_meaningless_target_is_refused(epsilon: float) -> None:
    with pytest.raises(FedloraError, match="epsilon"):
        calibrate_sigma(epsilon, DELTA, 1)


def test_planned_uploads_bound_what_any_order_of_passes_comes_to() -> None:
    for steps, batch, samples in [(225, 32, 7200), (225, 32, 6734), (10, 4, 3), (1, 4, 100)]:
        counts = [0] * samples
        for place in range(steps * min(batch, samples)):
            counts[place % samples] += 1
        assert planned_uploads(steps, batch, samples) == max(counts)


def test_the_policys_own_upload_count_goes_before_the_derived_one() -> None:
    policy = PrivacyPolicy(epsilon=8.0, uploads=4)
    assert gradient_sigma(policy, 100) == calibrate_sigma(8.0, policy.delta, 4)
    policy = PrivacyPolicy(epsilon=8.0, tight=True)
    assert gradient_sigma(policy, 3) == calibrate_sigma(8.0, policy.delta, 3, tight=True)
    assert gradient_sigma(PrivacyPolicy(sigma=5.6), 3) == 5.6


def test_activations_are_paid_out_of_the_same_budget() -> None:
    policy = PrivacyPolicy(epsilon=8.0, activation_sigma=4.0)
    sigma = gradient_sigma(policy, 10, activation_uploads=2)
    assert sigma > gradient_sigma(policy, 10)
    total = 10 * rho(sigma) + 2 * rho(4.0)
    assert epsilon_of(total, policy.delta) == pytest.approx(8.0, rel=1e-6)
    with pytest.raises(FedloraError, match="activation_sigma 4 over 50 uploads"):
        gradient_sigma(policy, 10, activation_uploads=50)


def test_plans_without_meaning_are_refused() -> None:
    with pytest.raises(FedloraError, match=r"sigma 0\.5 over 75 uploads .* raise"):
        gradient_sigma(PrivacyPolicy(sigma=0.5), 75)
    with pytest.raises(FedloraError, match="0 uploads"):
        gradient_sigma(PrivacyPolicy(epsilon=8.0), 0)
    with pytest.raises(FedloraError, match="privacy is off"):
        gradient_sigma(PrivacyPolicy(), 1)
