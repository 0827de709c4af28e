"""An attack on the mechanism itself: whether its noise is as good as the accountant believes.

The auditor chooses a sample's gradient out of two and guesses from the release which it was. The
rates of false alarms and of hits give a lower bound on the parameter mu of Gaussian differential
privacy, mu >= Phi^-1(hits) - Phi^-1(false alarms) (Dong, Roth and Su 2022; for audits Nasr et al.
2023), with Clopper and Pearson's bounds on both rates. The right mechanism has mu = 2 / sigma. A
bound above that proves a fault: the chance that the audit accuses a right mechanism is 1 minus the
confidence.

Four attackers look at the same releases:

``distribution``
    projects a release on the direction in which the two gradients differ. It finds missing or
    wrong clipping, too little noise, and noise that tokens or components share.
``neighbour``
    first subtracts the release of the next sample in the same upload, whose gradient it knows. It
    finds noise that samples share.
``previous``
    first subtracts the upload before, whose gradient it knows. It finds noise that uploads share.
``replay``
    first subtracts what a second process of the same seed releases for a gradient that it knows. It
    finds noise that follows from what the server knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedlora.config import Unit
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import Bools, Floats, exact_epsilon, mu_lower_bound

Mechanism = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Maps a packed gradient and the samples' lengths to the release."""
Uploads = Callable[[Bools], Floats]
"""Makes an upload whose samples hold the first of two neighbours where the argument is true, else
the second. Returns each sample's release on the line through both, where they lie at C and -C."""

RELEASES_MIN = 100_000

# the two gradients of a sample: spread over all tokens, so that clipping each on its own lets too
# much through, and of zero sum over tokens and over components, so that shared noise cancels
PROBE_WIDTH = 4
_SAMPLE = torch.tensor([[0.25, -0.25] * 2, [-0.25, 0.25] * 2] * 2, dtype=torch.float64)
_TOKEN = torch.tensor([[0.5, -0.5] * 2], dtype=torch.float64)
_BATCH = 2000  # samples in an upload; even
_EXCESS = 20.0  # norm of the chosen gradients over C


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes
    ----------
    releases
        Releases that were attacked.
    confidence
        Confidence of the lower bounds.
    mu
        What the mechanism is accounted for, 2 / sigma.
    mu_lower
        Largest lower bound on mu of any attacker.
    by_attacker
        Each attacker's lower bound on mu.
    delta, epsilon, epsilon_lower
        Epsilon of one upload at delta, exact, as accounted for and as proved by the audit.
    """

    releases: int
    confidence: float
    mu: float
    mu_lower: float
    by_attacker: dict[str, float]
    delta: float
    epsilon: float
    epsilon_lower: float

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the accounting."""
        return self.mu_lower <= self.mu


def audit_mechanism(
    build: Callable[[], Mechanism],
    sigma: float,
    clip_norm: float,
    *,
    unit: Unit = "sample",
    delta: float = 1e-5,
    releases: int = RELEASES_MIN,
    confidence: float = 0.999,
    seed: int = 0,
) -> Audit:
    """Attack a mechanism for gradients and bound its privacy from below.

    Parameters
    ----------
    build
        Starts the mechanism as a client does, with the same public seed each time it is called. The
        mechanism takes gradients of width ``PROBE_WIDTH``.
    sigma, clip_norm, delta, releases, confidence, seed
        See ``audit_uploads``.
    unit
        What the mechanism protects: a ``sample`` with all its tokens, or a ``token``.

    Raises
    ------
    FedloraError
        When there are too few releases for the confidence to mean much.
    """
    direction = _SAMPLE if unit == "sample" else _TOKEN
    lengths = [len(direction)] * _BATCH

    def start() -> Uploads:
        mechanism = build()

        def upload(first: Bools) -> Floats:
            signs = torch.from_numpy(np.where(first, 1.0, -1.0))
            gradients = signs[:, None, None] * (_EXCESS * clip_norm * direction)
            rows = mechanism(gradients.flatten(0, 1).float(), lengths).double()
            found: Floats = (
                (rows.view(len(first), *direction.shape) * direction).sum((1, 2)).numpy()
            )
            return found

        return upload

    return audit_uploads(
        start,
        sigma,
        clip_norm,
        delta=delta,
        releases=releases,
        confidence=confidence,
        seed=seed,
    )


def audit_uploads(
    build: Callable[[], Uploads],
    sigma: float,
    clip_norm: float,
    *,
    delta: float = 1e-5,
    releases: int = RELEASES_MIN,
    confidence: float = 0.999,
    seed: int = 0,
) -> Audit:
    """Attack what a client uploads and bound its privacy from below.

    Parameters
    ----------
    build
        Starts a client, with the same public seed each time it is called.
    sigma, clip_norm
        What the accountant is told.
    delta
        The delta that epsilon is stated at.
    releases
        Number of releases, at least 100,000.
    confidence
        Confidence that the bounds hold for all attackers together.
    seed
        Seed of the auditor's choices.

    Raises
    ------
    FedloraError
        When there are too few releases for the confidence to mean much.
    """
    if releases < RELEASES_MIN:
        raise FedloraError(f"{releases} releases bound little; audit at least {RELEASES_MIN}")
    generator = np.random.default_rng(seed)
    positive = generator.random((math.ceil(releases / _BATCH), _BATCH)) < 0.5
    attacks = _attack(build, positive, clip_norm)
    level = 1 - (1 - confidence) / len(attacks)
    bounds = {name: mu_lower_bound(*evidence, level) for name, evidence in attacks.items()}
    mu, mu_lower = 2 / sigma, max(bounds.values())
    return Audit(
        releases=positive.size,
        confidence=confidence,
        mu=mu,
        mu_lower=mu_lower,
        by_attacker=bounds,
        delta=delta,
        epsilon=exact_epsilon(mu**2 / 2, delta),
        epsilon_lower=exact_epsilon(mu_lower**2 / 2, delta),
    )


def _attack(
    build: Callable[[], Uploads], positive: Bools, clip_norm: float
) -> dict[str, tuple[Floats, Bools]]:
    """Return each attacker's scores, and which releases are positive."""
    known = np.ones(_BATCH, dtype=bool)
    client = build()
    previous, current = np.empty(positive.shape), np.empty(positive.shape)
    for upload, first in enumerate(positive):
        previous[upload] = client(known)
        current[upload] = client(first)
    clone = build()
    replayed = np.stack([(clone(known), clone(known))[1] for _ in positive])
    # each release is compared once, so that the scores are independent
    others = current[:, 1::2] - np.where(positive[:, 1::2], clip_norm, -clip_norm)
    return {
        "distribution": (current.ravel(), positive.ravel()),
        "neighbour": ((current[:, ::2] - others).ravel(), positive[:, ::2].ravel()),
        "previous": ((current - previous).ravel(), positive.ravel()),
        "replay": ((current - replayed).ravel(), positive.ravel()),
    }
