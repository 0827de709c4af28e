"""Probed noise has the energy of the mechanism's own, in every projection of a real model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fedlora.config import PrivacyPolicy, with_overrides
from fedlora.privacy.mechanisms import (
    RandomisedLabels,
    SystemNoise,
    label_corners,
    label_epsilon,
    mechanism_of,
    release,
    row_space_coordinates,
)
from fedlora.privacy.noise_propagation import SNR_MAX, SnrMeter
from fedlora.scenarios import find_scenario
from simulations.studies.cascade.energy import compare

ROWS, WIDTH, CLASSES, DRAWS = 6, 16, 4, 3000
SIGMA, C = 1.5, 0.05


@pytest.mark.parametrize(
    ("draws", "apart"), [(20, 0.5), pytest.param(2000, 0.05, marks=pytest.mark.slow)]
)
def test_prediction_is_near_in_every_projection_of_the_shipped_decoder(
    draws: int, apart: float
) -> None:
    text = [
        "privacy.release=full",
        "head.share=personal",
        "train.rounds=1",
        "train.steps=2",
        "train.batch_size=4",
        "evaluate.baseline=false",
        "evaluate.report=false",
    ]
    found = compare(with_overrides(find_scenario("quickstart-private"), text), draws=draws)
    assert len(found) > 20
    for energy in found:
        assert energy.predicted == pytest.approx(energy.measured, rel=apart), energy


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    z, weight = torch.randn(ROWS, WIDTH), 0.5 * torch.randn(CLASSES, WIDTH)
    labels = torch.multinomial(torch.softmax(z @ weight.T, -1), DRAWS, replacement=True)
    return z, weight, labels


def energy_of_noise(gradients: torch.Tensor, by: torch.Tensor) -> float:
    """Return the mean over labels of the variance of the gradients given the label."""
    total = 0.0
    for row in range(ROWS):
        for label in range(CLASSES):
            own = gradients[:, row][by[row] == label]
            if len(own) > 1:
                variance = own.double().var(0).sum()
                total += float(variance) * len(own) / DRAWS
    return total


@pytest.mark.parametrize("kind", ["full", "row_space", "logits", "labels"])
def test_a_probe_has_the_energy_of_the_mechanisms_own_noise(kind: str) -> None:
    z, weight, labels = problem()
    sizes = {"epsilon": 2.0} if kind == "labels" else {"sigma": SIGMA}
    policy = PrivacyPolicy(release=kind, clip_norm=C, **sizes)
    generator = torch.Generator().manual_seed(1)
    mechanism = mechanism_of(policy)
    probes = [mechanism.probe(z, weight, SIGMA, generator) for _ in range(DRAWS)]
    predicted = sum(float(p.double().square().sum()) for p in probes) / DRAWS
    noise, gradients = SystemNoise(), []
    corners = label_corners(CLASSES, C)
    for draw in range(DRAWS):
        own = labels[:, draw]
        if kind == "labels":
            told = RandomisedLabels(None, [str(k) for k in range(CLASSES)], 2.0).draw(
                dict(enumerate(own.tolist()))
            )
            target = F.one_hot(torch.tensor([told[i] for i in range(ROWS)]), CLASSES)
            gradients.append((torch.softmax(z @ weight.T, -1) - target) @ weight)
            continue
        exact = (torch.softmax(z @ weight.T, -1) - F.one_hot(own, CLASSES)) @ weight * 1e-3
        values = {
            "full": exact,
            "row_space": row_space_coordinates(exact, weight),
            "logits": corners[own],
        }[kind]
        norm = 2 * C if kind == "logits" else C
        sent = release(
            values, [1] * ROWS, clip_norm=norm, sigma=SIGMA * C / norm, noise=noise
        ).values
        found = mechanism.gradients(sent, z, weight, SIGMA)
        gradients.append(found.cut)
    measured = energy_of_noise(torch.stack(gradients), labels)
    assert predicted == pytest.approx(measured, rel=0.06)


def test_labels_are_flipped_as_often_as_clients_flip_them_beside_noised_activations() -> None:
    z, weight, _ = problem()
    policy = PrivacyPolicy(release="labels", epsilon=4.0, activation_sigma=3.0)
    plain = PrivacyPolicy(release="labels", epsilon=label_epsilon(policy))
    assert 1.0 < label_epsilon(policy) < 2.5
    first, second = (
        mechanism_of(p).probe(z, weight, 0.0, torch.Generator().manual_seed(2))
        for p in (policy, plain)
    )
    assert first.any() and torch.equal(first, second)


def test_a_head_that_the_server_cannot_see_gives_no_probe() -> None:
    policy = PrivacyPolicy(epsilon=1.0, release="labels")
    assert mechanism_of(policy).probe(torch.zeros(2, 3), None, 0.0) is None


def test_the_meter_adds_up_a_round_and_starts_anew() -> None:
    meter = SnrMeter(3)
    assert meter.take() is None
    meter.add([2.0, 0.5, 1.0], [1.0, 1.0, 0.0])
    meter.add([4.0, 0.5, 1.0], [1.0, 1.0, 0.0])
    assert meter.take() == [2.0, 0.0, SNR_MAX]
    assert meter.take() is None
