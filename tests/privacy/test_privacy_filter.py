from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fedlora.errors import FedloraError
from fedlora.privacy.accounting import rdp_epsilon
from fedlora.privacy.calibration import calibrate_sigma, rho_budget
from fedlora.privacy.filter import RenyiFilter

EPSILON, DELTA = 8.0, 1e-5


def exact_cost(sigma: float) -> Fraction:
    return 2 / Fraction(sigma) ** 2


@pytest.mark.parametrize("seed", range(20))
def test_adaptively_chosen_uploads_never_pass_the_total(seed: int) -> None:
    generator = np.random.default_rng(seed)
    total = rho_budget(EPSILON, DELTA)
    budget, admitted, sigma = RenyiFilter(total), [], 3.0
    for _ in range(500):
        if budget.admit(sigma):
            admitted.append(sigma)
            sigma *= generator.choice([0.7, 1.0, 1.5])  # a server that adapts to the answer
        else:
            sigma *= 2
    spent = sum(map(exact_cost, admitted), Fraction(0))
    assert 0 < spent <= Fraction(total)
    assert rdp_epsilon(float(spent), DELTA) <= EPSILON


def test_exactly_the_planned_uploads_are_admitted() -> None:
    for uploads in (1, 10, 5000):
        sigma = calibrate_sigma(EPSILON, DELTA, uploads)
        budget = RenyiFilter(rho_budget(EPSILON, DELTA))
        assert sum(budget.admit(sigma) for _ in range(uploads + 5)) == uploads


def test_a_refusal_books_nothing() -> None:
    budget = RenyiFilter(total=1.0)
    assert not budget.admit(1.0)
    assert budget.spent == 0.0
    assert budget.admit(2.0)
    assert budget.spent == pytest.approx(0.5)


def test_what_was_spent_before_counts() -> None:
    assert RenyiFilter(total=1.0, spent=0.4).admit(2.0)
    assert not RenyiFilter(total=1.0, spent=0.6).admit(2.0)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_no_noise_is_never_admitted(sigma: float) -> None:
    with pytest.raises(FedloraError, match="sigma is"):
        RenyiFilter(math.inf).admit(sigma)
