"""Label inference on tapped uploads."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedlora.config import PrivacyPolicy
from fedlora.privacy.mechanisms import SystemNoise, mechanism_of
from simulations.audit.attacks.auc import auc, label_auc_bound
from simulations.audit.attacks.labels import (
    direction_scores,
    label_candidates,
    label_distances,
    norm_scores,
)
from simulations.audit.recording import Upload

KNOWN = 10
"""Samples of each class whose label the direction attack knows."""
SIGMAS = (0.35, 0.7, 1.0, 1.276, 2.0, 3.0, 4.0, 5.6, 8.0, 16.0)
STRICT_SIGMA = 5.6
_DRAWS = 4000

Key = tuple[str, int]


@dataclass(frozen=True)
class Labelled:
    """A row for each upload of a sample of a classification.

    Attributes
    ----------
    key
        Client and number of the row's sample.
    label
        Its class, to judge attacks by.
    gradient
        What was uploaded for it, shape (rows, width).
    distances
        Of the upload to what it would be for every label, shape (rows, classes); None where the
        server does not know the head, or has blocks of the client after the cut.
    """

    key: list[Key]
    label: torch.Tensor
    gradient: torch.Tensor
    distances: torch.Tensor | None


def labelled(uploads: Sequence[Upload], policy: PrivacyPolicy) -> Labelled:
    """Read the uploads as a server does that may know the head."""
    key = [(u.client, number) for u in uploads for number in u.samples]
    label = torch.tensor([int(s.target) for u in uploads for s in u.truth])
    gradient = torch.cat([u.sums() for u in uploads])
    known = all(u.weight is not None and len(u.z) == len(u.samples) for u in uploads)
    distances = torch.cat([_distances(u, policy) for u in uploads]) if known else None
    return Labelled(key, label, gradient, distances)


def attack_labels(data: Labelled, policy: PrivacyPolicy, seed: int = 0) -> dict[str, Any]:
    """Return the AUC of every label attack with its 95% confidence interval.

    ``norm`` and ``direction`` tell the two most frequent classes apart; ``likelihood`` tells each
    sample's label from another one that is drawn at random. A sample that was uploaded several
    times is judged by all its uploads together.
    """
    two = sorted(label for label, _ in Counter(data.label.tolist()).most_common(2))
    rows = torch.isin(data.label, torch.tensor(two)).nonzero()[:, 0]
    key = [data.key[i] for i in rows.tolist()]
    positive = data.label[rows] == two[-1]
    gradient = data.gradient[rows]
    found = {"norm": _judge(*_by_sample(norm_scores(gradient), key, positive))}
    known = [i for side in (0, 1) for i in (positive == bool(side)).nonzero()[:KNOWN, 0].tolist()]
    labels = [int(positive[i]) for i in known]
    told = {key[i] for i in known}
    others = torch.tensor([i for i, k in enumerate(key) if k not in told], dtype=torch.int64)
    if len(set(labels)) == 2 and len(positive[others].unique()) == 2:
        values = direction_scores(gradient, known, labels)[others]
        rest = [key[i] for i in others.tolist()]
        found["direction"] = _judge(*_by_sample(values, rest, positive[others]))
    if data.distances is not None:
        distances, label = _samples(data, policy)
        scores, second = _pairs(distances, label, seed)
        found["likelihood"] = _judge(scores, second)
        found["exact"] = {
            "accuracy": float((distances.argmin(1) == label).double().mean()),
            "chance": 1 / distances.shape[1],
            "samples": len(label),
        }
    return found


def label_auc_over_sigma(
    uploads: Sequence[Upload], kind: str, clip_norm: float, seed: int = 0
) -> list[dict[str, float]]:
    """Attack one upload of each sample at several noise levels, with the mechanism's own noise.

    Parameters
    ----------
    uploads
        Of a run without noise, with a head that the server knows.
    kind, clip_norm
        What is released, and C.
    seed
        Of the labels that each one is told from.
    """
    mechanism = mechanism_of(PrivacyPolicy(sigma=1.0, release=kind, clip_norm=clip_norm))
    assert mechanism is not None
    first: dict[Key, tuple[torch.Tensor, int]] = {}
    for upload in uploads:
        assert upload.weight is not None
        candidates = label_candidates(upload.z, upload.weight, mechanism)
        for i, number in enumerate(upload.samples):
            first.setdefault((upload.client, number), (candidates[i], int(upload.truth[i].target)))
    draws = math.ceil(_DRAWS / len(first))  # of the noise, for each sample
    candidates = torch.stack([c for c, _ in first.values()]).repeat(draws, 1, 1)
    label = torch.tensor([y for _, y in first.values()]).repeat(draws)
    rows = torch.arange(len(label))
    curve = []
    for sigma in SIGMAS:
        exact = candidates[rows, label]  # without noise a sample is its own candidate
        noised = mechanism.noised(exact, [1] * len(rows), sigma, SystemNoise())
        distances = (noised.double()[:, None] - candidates).square().sum(-1)
        judged = _judge(*_pairs(distances, label, seed))
        curve.append({"sigma": sigma, **judged, "bound": label_auc_bound(sigma)})
    return curve


def _distances(upload: Upload, policy: PrivacyPolicy) -> torch.Tensor:
    assert upload.weight is not None
    mechanism = mechanism_of(policy)
    if mechanism is not None and not mechanism.noises_gradients:
        mechanism = None  # exact, but of labels drawn at random
    return label_distances(upload.gradient, upload.z, upload.weight, mechanism)


def _samples(data: Labelled, policy: PrivacyPolicy) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine the distances of a sample's uploads: log-likelihoods add up.

    A message that is the same each time tells nothing when it is repeated.
    """
    assert data.distances is not None
    places: dict[Key, int] = {}
    owner = torch.tensor([places.setdefault(key, len(places)) for key in data.key])
    total = torch.zeros(len(places), data.distances.shape[1], dtype=torch.float64)
    total.index_add_(0, owner, data.distances)
    mechanism = mechanism_of(policy)
    if mechanism is not None and mechanism.noises_gradients and mechanism.repeats:
        total /= torch.bincount(owner)[:, None]
    label = torch.zeros(len(places), dtype=torch.int64)
    label[owner] = data.label
    return total, label


def _pairs(distances: torch.Tensor, label: torch.Tensor, seed: int) -> tuple[Any, Any]:
    """Put each sample's label beside another one, in random order; score the second of the two."""
    generator = torch.Generator().manual_seed(seed)
    classes, rows = distances.shape[1], torch.arange(len(label))
    other = (label + torch.randint(1, classes, label.shape, generator=generator)) % classes
    second = torch.rand(len(label), generator=generator) < 0.5
    # Nothing is learnt from the order in which they stand, which is the auditor's coin.
    nearer_to_label = distances[rows, other] - distances[rows, label]
    return torch.where(second, nearer_to_label, -nearer_to_label).numpy(), second.numpy()


def _by_sample(values: torch.Tensor, key: Sequence[Key], positive: torch.Tensor) -> tuple[Any, Any]:
    """Average the scores of a sample's uploads."""
    scores, labels = defaultdict(list), dict[Key, bool]()
    for k, value, label in zip(key, values.tolist(), positive.tolist(), strict=True):
        scores[k].append(value)
        labels[k] = label
    return np.array([np.mean(v) for v in scores.values()]), np.array(list(labels.values()))


def _judge(scores: Any, positive: Any) -> dict[str, float]:
    judged = auc(scores, positive)
    return {
        "auc": judged.value,
        "low": judged.low,
        "high": judged.high,
        "samples": len(positive),
    }
