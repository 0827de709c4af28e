from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.stats import norm

from fedlora.errors import FedloraError
from fedlora.privacy.accounting import calibrate_sigma
from fedlora.privacy.mechanisms import InsecureNoise, NoiseSource, SystemNoise, clip_rows, release
from simulations.audit.attacks.mechanism_audit import (
    RELEASES_MIN,
    Mechanism,
    audit_mechanism,
    mu_lower_bound,
)

C, DELTA = 0.05, 1e-5

Build = Callable[[], Mechanism]


def mechanism(sigma: float, source: Callable[[], NoiseSource], unit: str = "sample") -> Build:
    def build() -> Mechanism:
        noise = source()

        def run(gradient: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
            released = release(gradient, lengths, clip_norm=C, sigma=sigma, noise=noise, unit=unit)
            return released.values

        return run

    return build


class ReusedNoise(SystemNoise):
    def __init__(self) -> None:
        self._first = super()._key()

    def _key(self) -> bytes:
        return self._first


def shared_noise(sigma: float, dims: tuple[int, ...]) -> Build:
    """Noise that is drawn once along some of (samples, tokens, components)."""

    def build() -> Mechanism:
        def run(gradient: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
            clipped = clip_rows(gradient, lengths, C).values
            x = clipped.view(len(lengths), -1, gradient.shape[1])
            shape = [1 if dim in dims else size for dim, size in enumerate(x.shape)]
            noise = SystemNoise().standard_normal(shape)
            return (x + sigma * C * noise).view_as(clipped).float()

        return run

    return build


def unclipped(sigma: float) -> Build:
    return lambda: lambda gradient, lengths: gradient + sigma * C * torch.randn_like(gradient)


def globally_seeded(sigma: float) -> Build:
    def build() -> Mechanism:
        torch.manual_seed(1)

        def run(gradient: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
            clipped = clip_rows(gradient, lengths, C).values.float()
            return clipped + sigma * C * torch.randn_like(clipped)

        return run

    return build


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_right_mechanism_stays_below_its_accounted_epsilon(epsilon: float) -> None:
    sigma = calibrate_sigma(epsilon, DELTA, 1)
    processes = itertools.count()  # each draws its own noise, as from the operating system
    build = mechanism(sigma, lambda: InsecureNoise(next(processes), "audit"))
    audit = audit_mechanism(build, sigma, C, delta=DELTA)
    assert audit.passed
    assert audit.releases >= RELEASES_MIN
    assert audit.confidence == 0.999
    assert audit.epsilon_lower <= audit.epsilon <= epsilon
    assert audit.mu_lower > 0.6 * audit.mu  # the attack is no formality


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize(
    ("fault", "finder"),
    [
        (unclipped, "distribution"),
        (lambda sigma: mechanism(sigma / 2, SystemNoise), "distribution"),
        (lambda sigma: mechanism(sigma, SystemNoise, "token"), "distribution"),
        (lambda sigma: shared_noise(sigma, (1,)), "distribution"),
        (lambda sigma: shared_noise(sigma, (2,)), "distribution"),
        (lambda sigma: shared_noise(sigma, (0,)), "neighbour"),
        (lambda sigma: mechanism(sigma, ReusedNoise), "previous"),
        (lambda sigma: mechanism(sigma, lambda: InsecureNoise(3, "c")), "replay"),
        (globally_seeded, "replay"),
    ],
)
def test_a_broken_mechanism_is_caught(
    fault: Callable[[float], Build], finder: str, epsilon: float
) -> None:
    sigma = calibrate_sigma(epsilon, DELTA, 1)
    audit = audit_mechanism(fault(sigma), sigma, C, delta=DELTA)
    assert not audit.passed
    assert audit.by_attacker[finder] > audit.mu
    assert audit.epsilon_lower > audit.epsilon


@pytest.mark.parametrize("mu", [0.0, 0.25, 1.5])
def test_the_bound_on_mu_is_below_the_truth_and_near_it(mu: float) -> None:
    bounds = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        positive = generator.random(20_000) < 0.5
        scores = generator.normal(size=20_000) + mu * positive
        bounds.append(mu_lower_bound(scores, positive, 0.95))
    # 40 bounds at 95% confidence, and Bonferroni's slack between the two rates
    assert sum(bound > mu for bound in bounds) <= 6
    assert np.median(bounds) > mu - 0.12


def test_a_perfect_attack_is_bounded_by_the_number_of_releases() -> None:
    positive = np.arange(10_000) % 2 == 0
    bound = mu_lower_bound(positive.astype(float), positive, 0.999)
    rate = 1 - (0.0005) ** (1 / 2500)
    assert bound == pytest.approx(-2 * norm.ppf(rate), rel=1e-6)


def test_too_few_releases_are_refused() -> None:
    with pytest.raises(FedloraError, match="1000 releases bound little"):
        audit_mechanism(mechanism(1.0, SystemNoise), 1.0, C, releases=1000)
