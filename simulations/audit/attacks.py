"""What the attacks find in a run's uploads."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fedlora.privacy.attacks.auc import auc, label_auc_bound
from fedlora.privacy.attacks.labels import direction_scores, norm_scores
from fedlora.privacy.attacks.mechanism_audit import audit_mechanism
from fedlora.privacy.attacks.tokens import nearest_tokens, token_accuracy
from fedlora.privacy.calibration import calibrate_sigma
from fedlora.privacy.head_space import label_corners, label_reach, row_space_coordinates
from fedlora.privacy.mechanism import clip_rows, release
from fedlora.privacy.noise import SystemNoise
from fedlora.privacy.policy import PrivacyPolicy, Release
from fedlora.server.engine import ClientRows
from simulations.audit.tap import Observed, Upload

KNOWN = 10
"""Samples of each class whose label the direction attack knows."""
SIGMAS = (0.35, 0.7, 1.0, 1.276, 2.0, 3.0, 4.0, 5.6, 8.0, 16.0)
_TOKENS, _MEMBERS, _DRAWS = 4000, 400, 2000


@dataclass(frozen=True)
class Labelled:
    """The uploads of the two most frequent classes, a row for each upload of a sample.

    Attributes
    ----------
    key
        Client and number of each row's sample.
    positive
        Whether its label is the second of the two classes.
    classes
        The two classes.
    gradient, z
        See ``Upload``.
    weights
        Weight of the shared head at the time, one for each row; empty where heads are personal.
    """

    key: list[tuple[str, int]]
    positive: torch.Tensor
    classes: tuple[int, int]
    gradient: torch.Tensor
    z: torch.Tensor
    weights: list[torch.Tensor]


def two_classes(uploads: Sequence[Upload]) -> Labelled:
    """Keep the uploads of the two most frequent classes."""
    labels = Counter(int(s.target) for u in uploads for s in u.truth)  # type: ignore[arg-type]  # pooled
    first, second = sorted(label for label, _ in labels.most_common(2))
    rows = [(u, i) for u in uploads for i, s in enumerate(u.truth) if s.target in (first, second)]
    return Labelled(
        [(u.client, u.samples[i]) for u, i in rows],
        torch.tensor([u.truth[i].target == second for u, i in rows]),
        (first, second),
        torch.stack([u.gradient[i] for u, i in rows]),
        torch.stack([u.z[i] for u, i in rows]),
        [u.weight for u, _ in rows if u.weight is not None],
    )


def attack_labels(data: Labelled, policy: PrivacyPolicy) -> dict[str, Any]:
    """Return the AUC of every label attack, each with its 95% confidence interval.

    A sample that was uploaded several times is judged by all its uploads together.
    """
    scores = {"norm": norm_scores(data.gradient)}
    found: dict[str, Any] = {}
    if data.weights:
        scores["likelihood"] = likelihood_scores(data, policy)
    repeated = policy.enabled and policy.release == "logits"  # the same message each time
    for name, values in scores.items():
        total = name == "likelihood" and not repeated
        found[name] = _judge(*_by_sample(values, data, total=total))
    known = [
        i for side in (0, 1) for i in (data.positive == bool(side)).nonzero()[:KNOWN, 0].tolist()
    ]
    labels = [int(data.positive[i]) for i in known]
    if len(set(labels)) == 2:
        values = direction_scores(data.gradient, known, labels)
        told = {data.key[i] for i in known}
        found["direction"] = _judge(*_by_sample(values, data, total=False, without=told))
    return found


def likelihood_scores(data: Labelled, policy: PrivacyPolicy) -> torch.Tensor:
    """Score by the likelihood ratio of the two labels, which nothing beats: the head is public."""
    return _ratio(data.gradient, _candidates(data, policy))


def _ratio(gradient: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Return how much nearer each row is to the second of its candidates (rows, 2, width)."""
    distances = (gradient.double()[:, None] - candidates).square().sum(-1)
    return distances[:, 0] - distances[:, 1]


def _candidates(data: Labelled, policy: PrivacyPolicy) -> torch.Tensor:
    """Return what each row would be without noise for either label, (rows, 2, width)."""
    classes = list(data.classes)
    if policy.enabled and policy.release == "logits":
        corners = label_corners(len(data.weights[0]), policy.clip_norm)
        return corners[classes].expand(len(data.z), 2, -1)
    ids = torch.tensor([id(weight) for weight in data.weights])
    by_id = {id(weight): weight for weight in data.weights}
    found: dict[int, torch.Tensor] = {}
    for number, weight in by_id.items():
        rows = (ids == number).nonzero()[:, 0]
        w = weight.double()
        p = torch.softmax(data.z[rows].double() @ w.T, -1)
        u = p[:, None] - F.one_hot(torch.tensor(classes), len(w))
        gradient = (u @ w).flatten(0, 1)
        if policy.enabled and policy.release == "row_space":
            gradient = row_space_coordinates(gradient, weight)
        if policy.enabled:
            gradient = clip_rows(gradient, [1] * len(gradient), policy.clip_norm).values
        found |= zip(rows.tolist(), gradient.view(len(rows), 2, -1), strict=True)
    return torch.stack([found[i] for i in range(len(data.z))])


def label_auc_over_sigma(
    exact: Labelled, kind: Release, clip_norm: float
) -> list[dict[str, float]]:
    """Attack one upload of each sample at several noise levels.

    Parameters
    ----------
    exact
        Uploads of a run without noise, with a shared head.
    kind, clip_norm
        What is released, and C.
    """
    policy = PrivacyPolicy(sigma=1.0, release=kind, clip_norm=clip_norm)
    first = {key: i for i, key in reversed(list(enumerate(exact.key)))}
    rows = sorted(first.values())
    once = Labelled(
        [exact.key[i] for i in rows],
        exact.positive[rows],
        exact.classes,
        exact.gradient[rows],
        exact.z[rows],
        [exact.weights[i] for i in rows],
    )
    draws = math.ceil(_DRAWS / len(rows))  # of the noise, for each sample
    candidates = _candidates(once, policy).repeat(draws, 1, 1)
    positive = once.positive.repeat(draws)
    # without noise a sample is its own candidate
    sent = candidates[torch.arange(len(positive)), positive.long()]
    reach = label_reach(len(once.weights[0])) if kind == "logits" else 1.0
    curve = []
    for sigma in SIGMAS:
        noised = release(
            sent,
            [1] * len(sent),
            clip_norm=reach * clip_norm,
            sigma=sigma / reach,
            noise=SystemNoise(),
        ).values
        judged = auc(_ratio(noised, candidates).numpy(), positive.numpy())
        curve.append(
            {
                "sigma": sigma,
                "auc": judged.value,
                "low": judged.low,
                "high": judged.high,
                "bound": label_auc_bound(sigma),
            }
        )
    return curve


@torch.no_grad()
def recover(observed: Observed) -> dict[str, float]:
    """Look each activation up among those of single tokens; return the fraction that is right."""
    front = observed.parts.model.front
    vocabulary = front.weight.shape[0]
    table = front(torch.arange(vocabulary), [1] * vocabulary)
    activations = torch.cat([u.activation for u in observed.uploads])[:_TOKENS]
    truth = torch.tensor([t for u in observed.uploads for s in u.truth for t in s.ids])[:_TOKENS]
    found = nearest_tokens(activations, table)
    return {"token_accuracy": token_accuracy(found, truth), "tokens": len(truth)}


@torch.no_grad()
def membership(observed: Observed) -> dict[str, Any]:
    """Guess from the final model's loss whether a sample was trained on; return the AUC."""
    per_client = max(1, _MEMBERS // len(observed.clients))
    trained = defaultdict[str, set[int]](set)
    for upload in observed.uploads:
        trained[upload.client] |= set(upload.samples)
    losses, member = list[float](), list[bool]()
    for client in observed.clients:
        inside = [client.batches.samples[i] for i in sorted(trained[client.name])[:per_client]]
        outside = list(client.held_out[:per_client])
        samples = [*inside, *outside]
        lengths = [len(s.ids) for s in samples]
        e = client.model.front(torch.tensor([t for s in samples for t in s.ids]), lengths)
        engine = observed.server.engine
        (z,) = engine.forward([ClientRows(e, lengths, engine.full_ranks())], train=False)
        targets = torch.tensor([s.target for s in samples])
        losses += F.cross_entropy(client.head.module(z), targets, reduction="none").tolist()
        member += [True] * len(inside) + [False] * len(outside)
    if len(set(member)) < 2:
        return {}
    return {**_judge(-np.array(losses), np.array(member)), "samples": len(member)}


def audit_noise(sigma: float, clip_norm: float, delta: float) -> list[dict[str, Any]]:
    """Bound the mechanism's privacy from below, at the run's noise and at epsilon 1."""
    results = []
    for level in (sigma, calibrate_sigma(1.0, delta, 1)):

        def build(
            level: float = level,
        ) -> Callable[[torch.Tensor, Sequence[int]], torch.Tensor]:
            noise = SystemNoise()
            return lambda gradient, lengths: (
                release(gradient, lengths, clip_norm=clip_norm, sigma=level, noise=noise).values
            )

        found = audit_mechanism(build, level, clip_norm, delta=delta)
        results.append(
            {
                "sigma": level,
                "releases": found.releases,
                "confidence": found.confidence,
                "epsilon_one_upload": found.epsilon,
                "epsilon_lower_bound": found.epsilon_lower,
                "by_attacker_mu": found.by_attacker,
                "mu": found.mu,
                "passed": found.passed,
            }
        )
    return results


def _by_sample(
    values: torch.Tensor,
    data: Labelled,
    *,
    total: bool,
    without: set[tuple[str, int]] | None = None,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Combine the scores of a sample's uploads: their sum (log-likelihoods) or their mean."""
    scores = defaultdict(list)
    labels: dict[tuple[str, int], bool] = {}
    for key, value, label in zip(data.key, values.tolist(), data.positive.tolist(), strict=True):
        if key not in (without or ()):
            scores[key].append(value)
            labels[key] = label
    combined = [math.fsum(v) / (1 if total else len(v)) for v in scores.values()]
    return np.array(combined), np.array(list(labels.values()))


def _judge(scores: Any, positive: Any) -> dict[str, float]:
    judged = auc(scores, positive)
    return {"auc": judged.value, "low": judged.low, "high": judged.high}
