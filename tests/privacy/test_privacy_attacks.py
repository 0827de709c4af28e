from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ndtr

from fedlora.config import PrivacyPolicy
from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms import Full, InsecureNoise, release
from simulations.audit.attacks.auc import Auc, auc, label_auc_bound
from simulations.audit.attacks.labels import direction_scores, label_distances, norm_scores
from simulations.audit.attacks.tokens import nearest_tokens, recover_tokens, token_accuracy

SAMPLES, WIDTH, C = 2000, 48, 0.05


@pytest.fixture(scope="module")
def head() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear head: its input, its weight, the labels, and the gradients at the cut."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(SAMPLES, WIDTH, generator=generator)
    weight = torch.randn(2, WIDTH, generator=generator) * 0.2
    labels = (torch.rand(SAMPLES, generator=generator) < 0.3).long()
    z.requires_grad_()
    F.cross_entropy(z @ weight.T, labels, reduction="sum").backward()
    assert z.grad is not None
    return z.detach(), weight, labels, z.grad


def attacks(gradients: torch.Tensor, head: tuple[torch.Tensor, ...], clip: float) -> dict[str, Auc]:
    z, weight, labels, _ = head
    known = list(range(64))
    mechanism = Full(PrivacyPolicy(sigma=1.0, clip_norm=clip)) if math.isfinite(clip) else None
    distances = label_distances(gradients, z, weight, mechanism)
    scores = {
        "norm": norm_scores(gradients),
        "direction": direction_scores(gradients, known, labels[known].tolist()),
        "likelihood": distances[:, 0] - distances[:, 1],
    }
    return {name: auc(score[64:], labels[64:] == 1) for name, score in scores.items()}


def noised(gradients: torch.Tensor, sigma: float) -> torch.Tensor:
    rows = [1] * len(gradients)
    noise = InsecureNoise(0, "attack")
    return release(gradients, rows, clip_norm=C, sigma=sigma, noise=noise).values


def test_without_noise_the_gradient_gives_the_label_away(head: tuple[torch.Tensor, ...]) -> None:
    found = attacks(head[3], head, math.inf)
    assert found["direction"].value > 0.95
    assert found["likelihood"].value == 1.0


@pytest.mark.parametrize("sigma", [0.5, 1.2753, 5.6])
def test_with_noise_no_attack_beats_its_bound(head: tuple[torch.Tensor, ...], sigma: float) -> None:
    for found in attacks(noised(head[3], sigma), head, C).values():
        assert found.low <= label_auc_bound(sigma)


def test_the_likelihood_attack_reaches_the_bound_where_the_clip_bites(
    head: tuple[torch.Tensor, ...],
) -> None:
    sigma = 1.5
    found = attacks(noised(head[3] * 1e3, sigma), head, C)["likelihood"]
    assert found.low <= label_auc_bound(sigma) <= found.high + 0.01
    assert found.value > 0.8


def test_the_strict_setting_holds_the_label_auc_at_0_6() -> None:
    assert label_auc_bound(5.6) <= 0.6
    assert label_auc_bound(5.6, uploads=4) == label_auc_bound(2.8) > 0.6
    assert label_auc_bound(0.0) == 1.0


def test_the_norm_gives_the_rarer_class_away() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(SAMPLES, generator=generator) < 0.05
    residual = torch.where(labels, 0.9, 0.1) + 0.05 * torch.randn(SAMPLES, generator=generator)
    gradients = residual[:, None, None] * torch.randn(1, 3, WIDTH, generator=generator)
    assert auc(norm_scores(gradients), labels).value > 0.95


def test_auc_counts_pairs_and_halves_ties() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 5, size=60).astype(float)
    labels = generator.random(60) < 0.4
    pairs = itertools.product(scores[labels], scores[~labels])
    wins = [(a > b) + 0.5 * (a == b) for a, b in pairs]
    assert auc(scores, labels).value == pytest.approx(np.mean(wins))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth, covered = ndtr(0.8 / math.sqrt(2)), 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        labels = np.arange(300) % 2 == 0
        found = auc(generator.normal(size=300) + 0.8 * labels, labels, seed=seed)
        assert found.low <= found.value <= found.high
        covered += found.low <= truth <= found.high
    assert covered >= 32


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [True, True], "both classes"),
        ([1.0, math.nan], [True, False], "one finite score"),
        ([1.0], [True, False], "one finite score"),
    ],
)
def test_scores_that_give_no_auc_are_refused(scores: list, labels: list, message: str) -> None:
    with pytest.raises(FedloraError, match=message):
        auc(scores, labels)


def test_known_labels_need_both_classes() -> None:
    with pytest.raises(FedloraError, match=r"known labels are \[1\]"):
        direction_scores(torch.zeros(3, 2), [0, 1], [1, 1])


def test_activations_at_depth_0_give_the_tokens_away_and_noise_on_them_does_not() -> None:
    generator = torch.Generator().manual_seed(2)
    vocabulary, length, rows = 2000, 16, 40
    table = torch.randn(vocabulary, WIDTH, generator=generator)
    places = torch.randn(length, WIDTH, generator=generator)
    tokens = torch.randint(vocabulary, (rows * length,), generator=generator)
    positions = torch.arange(length).repeat(rows)
    activations = table[tokens] + places[positions]

    def accuracy(received: torch.Tensor) -> float:
        found = recover_tokens(received, positions.tolist(), lambda p: table + places[p])
        return token_accuracy(found, tokens)

    assert accuracy(activations) > 0.99
    assert accuracy(activations.bfloat16()) > 0.99
    norm = float(activations.view(rows, -1).norm(dim=1).max())
    noise = InsecureNoise(0, "attack")
    covered = release(activations, [length] * rows, clip_norm=norm, sigma=1.2753, noise=noise)
    assert accuracy(covered.values) < 0.05
    assert token_accuracy(nearest_tokens(table[tokens], table), tokens) == 1.0
