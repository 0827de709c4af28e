"""The check finds every kind of fault in a mechanism of one's own, and none in sound ones."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
from dp_accounting import GaussianDpEvent, LaplaceDpEvent
from support.mechanisms import BROKEN, Laplace

from fedlora.config import PrivacyPolicy, Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import Charge, rdp_epsilon
from fedlora.privacy.mechanisms import SHIPPED, Full, Mechanism, check_mechanism
from simulations.examples.sketch import Sketch


@pytest.mark.parametrize("kind", [*SHIPPED.values(), Sketch, Laplace])
def test_a_sound_mechanism_has_no_finding(kind: type[Mechanism]) -> None:
    assert check_mechanism(kind) == []


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_mechanism_is_named_with_what_was_expected(kind: type[Mechanism]) -> None:
    findings = check_mechanism(kind)
    assert any(re.search(BROKEN[kind], finding) for finding in findings), findings
    assert len(findings) <= 3 and not any("\n" in finding for finding in findings)


def test_the_page_shows_a_sound_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mechanisms.md").read_text()
    shown = re.search(r"```python\n(import torch\n.*?)```", page, re.S)
    assert shown is not None
    names: dict[str, type[Mechanism]] = {}
    exec(shown[1], names)
    assert check_mechanism(names["Half"]) == []


def test_what_is_no_mechanism_is_named() -> None:
    assert "give a class that inherits from Mechanism" in check_mechanism(dict)[0]


def test_charges_are_held_to_dp_accounting() -> None:
    assert check_mechanism(Full, event=lambda sigma: GaussianDpEvent(sigma / 2)) == []
    (finding,) = check_mechanism(Full, event=lambda sigma: GaussianDpEvent(sigma / 2.1))
    assert re.search(r"come to epsilon .*; expected at least the .* of dp-accounting", finding)
    scale = 2 * math.sqrt(2)  # sensitivity over b
    assert check_mechanism(Laplace, event=lambda sigma: LaplaceDpEvent(sigma / scale)) == []


def test_a_missing_dp_accounting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting.rdp", None)
    with pytest.raises(FedloraError, match="pip install dp-accounting"):
        check_mechanism(Full, event=lambda sigma: GaussianDpEvent(sigma / 2))


@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_noise_is_calibrated_to_a_charge_of_ones_own(epsilon: float) -> None:
    policy = PrivacyPolicy(epsilon=epsilon, release="laplace", uploads=3)
    made = Laplace(policy)
    plan = made.plan(Scenario(), 40)
    spent = rdp_epsilon(3 * made.charge(plan.sigma).rho, policy.delta)
    assert spent <= epsilon
    assert rdp_epsilon(3 * made.charge(plan.sigma * 0.999).rho, policy.delta) > epsilon


@pytest.mark.parametrize("cost", [(0.0, 0.0), (1.0, 1.0), (-1.0, 0.0), (math.inf, 0.0)])
def test_nothing_is_free_and_nothing_is_paid_twice(cost: tuple[float, float]) -> None:
    with pytest.raises(FedloraError, match="charge one of them, finite and above 0"):
        Charge(*cost)
