from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fedlora.config import ClientLimit
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import add_up, calibrate_sigma, rdp_epsilon, rho_budget, upload_cost
from fedlora.privacy.ledger.budget import OwnerBudget

EPSILON, DELTA = 8.0, 1e-5


class OneSample:
    """A sample's uploads under its owner's limit."""

    def __init__(self) -> None:
        self.budget = OwnerBudget("0", ClientLimit(EPSILON, DELTA))
        self.spent = 0.0

    def admit(self, sigma: float) -> bool:
        spent = add_up(self.spent, upload_cost(sigma))
        if not self.budget.pays({0: spent}, {}):
            return False
        self.spent = spent
        return True


def exact_cost(sigma: float) -> Fraction:
    return 2 / Fraction(sigma) ** 2


@pytest.mark.parametrize("seed", range(20))
def test_adaptively_chosen_uploads_never_pass_the_total(seed: int) -> None:
    generator = np.random.default_rng(seed)
    total = rho_budget(EPSILON, DELTA)
    budget, admitted, sigma = OneSample(), [], 3.0
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
        budget = OneSample()
        assert sum(budget.admit(sigma) for _ in range(uploads + 5)) == uploads


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_no_noise_is_never_admitted(sigma: float) -> None:
    with pytest.raises(FedloraError, match="sigma is"):
        upload_cost(sigma)
