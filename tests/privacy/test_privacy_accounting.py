from __future__ import annotations

import itertools
import math
import warnings

import dp_accounting
import numpy as np
import pytest
from opacus.accountants import RDPAccountant
from scipy.integrate import quad
from scipy.stats import norm

from fedlora.errors import FedloraError
from fedlora.privacy.accounting import SampledAccountant, convert, exact_epsilon, rdp_epsilon
from fedlora.privacy.accounting.rdp import ORDERS, conversion, gaussian_delta, rho

OPACUS_ORDERS = tuple([1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64)))
DELTA = 1e-5

# (q, noise multiplier, steps): epsilon by RDP at opacus' orders, epsilon by PLD
ANCHORS = {
    (1, 1, 1): (4.7285, 4.3772),
    (1, 4, 100): (14.1322, 13.2067),
    (0.01, 1, 1000): (2.1014, 1.8282),
    (0.01, 0.8, 1000): (3.6954, 3.1410),
    (0.01, 1, 100): (1.2141, 0.7180),
    (0.02, 1, 2000): (6.1504, 5.6158),
    (0.1, 2, 100): (2.5806, 2.3374),
    (32 / 6734, 1, 600): (1.0678, 0.6485),
}


def sampled(q: float, noise: float, steps: int, orders: tuple[float, ...] = ORDERS):
    accountant = SampledAccountant(orders)
    accountant.step(noise, q, steps)
    return accountant


def event(q: float, noise: float, steps: int) -> dp_accounting.DpEvent:
    one = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise))
    return dp_accounting.SelfComposedDpEvent(one, steps)


@pytest.mark.parametrize(
    ("q", "noise"), itertools.product((0.001, 0.01, 0.1, 0.5, 1), (0.7, 1, 2, 8))
)
def test_epsilon_equals_dp_accounting_at_the_same_orders(q: float, noise: float) -> None:
    # whole orders: at others dp-accounting's series is cut off early and stays above the integral
    orders = tuple(order for order in ORDERS if order == int(order))
    for steps in (1, 30, 1000):
        reference = dp_accounting.rdp.RdpAccountant(orders).compose(event(q, noise, steps))
        ours = sampled(q, noise, steps, orders).rdp_epsilon(DELTA)
        assert ours == pytest.approx(reference.get_epsilon(DELTA), abs=1e-3)


@pytest.mark.parametrize(("q", "noise"), [(0.01, 1.0), (0.1, 0.7), (0.5, 2.0), (0.5, 8.0)])
@pytest.mark.parametrize("order", [1.1, 2.7, 5.5, 10.9])
def test_fractional_orders_equal_the_integral(q: float, noise: float, order: float) -> None:
    def integrand(x: float) -> float:
        ratio = math.log1p(q * math.expm1((2 * x - 1) / (2 * noise**2)))
        return math.exp(order * ratio) * norm.pdf(x, scale=noise)

    ends = (-12 * noise, 12 * noise + order)
    moment = quad(integrand, *ends, points=(0, order), epsabs=1e-14, epsrel=1e-12, limit=500)[0]
    divergence = math.log(moment) / (order - 1)
    epsilon = divergence + float(conversion(np.array([order]), DELTA)[0])
    assert sampled(q, noise, 1, (order,)).rdp_epsilon(DELTA) == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.parametrize(("q", "noise", "steps"), ANCHORS)
def test_epsilon_meets_the_anchors_and_prv_lies_between_exact_and_rdp(
    q: float, noise: float, steps: int
) -> None:
    rdp, exact = ANCHORS[q, noise, steps]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accountant = sampled(q, noise, steps, OPACUS_ORDERS)
        assert accountant.rdp_epsilon(DELTA) == pytest.approx(rdp, abs=1e-3)
        prv = accountant.prv_epsilon(DELTA)
    assert exact - 1e-3 <= prv <= min(rdp, exact + 0.02)


@pytest.mark.parametrize("total", [1e-6, 1e-3, 0.1, 0.5, 3.125, 40.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-2])
def test_exact_epsilon_inverts_the_gaussian_trade_off_and_never_exceeds_rdp(
    total: float, delta: float
) -> None:
    epsilon = exact_epsilon(total, delta)
    mu = math.sqrt(2 * total)
    assert epsilon <= rdp_epsilon(total, delta) + 1e-12
    if epsilon == 0:
        assert gaussian_delta(mu, 0.0) <= delta
    else:
        assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize(("noise", "steps"), [(1, 1), (4, 100), (30, 7)])
def test_exact_epsilon_equals_the_privacy_loss_distribution(noise: float, steps: int) -> None:
    reference = dp_accounting.pld.PLDAccountant().compose(event(1, noise, steps))
    ours = exact_epsilon(steps * rho(noise, "zero_out"), DELTA)
    assert ours == pytest.approx(reference.get_epsilon(DELTA), rel=2e-3, abs=2e-4)


def test_uploads_with_different_noise_add_up_as_in_opacus() -> None:
    reference = RDPAccountant()
    reference.history = [(1.5, 1.0, 3), (4.0, 1.0, 20), (2.2, 1.0, 1)]
    zero_out = 3 * rho(1.5, "zero_out") + 20 * rho(4.0, "zero_out") + rho(2.2, "zero_out")
    ours = rdp_epsilon(zero_out, DELTA, OPACUS_ORDERS)
    assert ours == pytest.approx(reference.get_epsilon(DELTA), rel=1e-12)


def test_replace_one_is_zero_out_with_half_the_noise_multiplier() -> None:
    sigma = 1.7
    assert rho(sigma) == pytest.approx(rho(sigma / 2, "zero_out"))
    assert convert(rho(sigma), "zero_out") == pytest.approx(rho(sigma, "zero_out"))
    assert convert(rho(sigma), "replace_one") == rho(sigma)


def test_orders_above_63_lower_small_budgets() -> None:
    assert max(ORDERS) == 1024
    assert set(OPACUS_ORDERS) <= set(ORDERS)
    small = rho(40.0, "zero_out")
    assert rdp_epsilon(small, DELTA) < 0.8 * rdp_epsilon(small, DELTA, OPACUS_ORDERS)


def test_accounting_never_warns_where_the_best_order_is_the_last() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rdp_epsilon(1e-12, DELTA)
        accountant = sampled(0.001, 50.0, 1)
        accountant.prv_epsilon(DELTA)
        sampled(0.5, 0.3, 1000).prv_epsilon(DELTA)


def test_sampled_steps_of_different_kinds_cost_no_less_than_their_parts() -> None:
    accountant = SampledAccountant()
    accountant.step(1.0, 0.01, 500)
    first = accountant.prv_epsilon(DELTA)
    accountant.step(3.0, 1.0, 2)
    both = accountant.prv_epsilon(DELTA)
    exact = dp_accounting.pld.PLDAccountant()
    exact.compose(event(0.01, 1.0, 500)).compose(event(1, 3.0, 2))
    assert first < both <= accountant.rdp_epsilon(DELTA)
    assert both == pytest.approx(exact.get_epsilon(DELTA), abs=0.02)


def test_no_upload_costs_nothing_and_no_noise_costs_everything() -> None:
    assert rdp_epsilon(0.0, DELTA) == exact_epsilon(0.0, DELTA) == 0.0
    assert SampledAccountant().prv_epsilon(DELTA) == SampledAccountant().rdp_epsilon(DELTA) == 0.0
    assert rdp_epsilon(rho(0.0), DELTA) == exact_epsilon(rho(0.0), DELTA) == math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    for epsilon in (rdp_epsilon, exact_epsilon):
        with pytest.raises(FedloraError, match="delta"):
            epsilon(1.0, delta)


@pytest.mark.parametrize(("noise", "rate"), [(0.0, 0.1), (1.0, 1.5), (math.nan, 0.1)])
def test_a_step_out_of_range_is_refused(noise: float, rate: float) -> None:
    with pytest.raises(FedloraError, match="cannot be accounted for"):
        SampledAccountant().step(noise, rate)


def test_epsilon_grows_with_what_was_spent() -> None:
    totals = np.geomspace(1e-4, 30, 40)
    for epsilon in (rdp_epsilon, exact_epsilon):
        values = [epsilon(total, DELTA) for total in totals]
        assert values == sorted(values)
