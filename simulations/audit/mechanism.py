"""The audit of what a client really does: 100,000 uploads by its own release object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from clients.owner import OwnerTerms, Private, PrivateSamples
from clients.release.base import GradientRelease
from clients.release.build import build_release
from clients.release.private import PrivateRelease
from fedlora.config import Scenario
from fedlora.privacy.accounting import Bools, Floats, calibrate_sigma
from fedlora.privacy.mechanisms import Logits, label_corners, mechanism_of, zero_sum_basis
from fedlora.tasks import Sample
from simulations.audit.attacks.mechanism_audit import (
    PROBE_WIDTH,
    RELEASES_MIN,
    Audit,
    Mechanism,
    Uploads,
    audit_mechanism,
    audit_uploads,
)
from simulations.audit.recording import Advance

_UPLOADS = 2 * RELEASES_MIN  # of each process; a sample is uploaded once
_DELTA = 1e-9  # below one over the samples, whatever the scenario's delta; the noise is given


def audit_noise(
    scenario: Scenario, sigma: float, advance: Advance = lambda: None, *, levels: int = 2
) -> list[dict[str, Any]]:
    """Bound the privacy of a client's uploads from below, at the run's noise and at epsilon 1.

    Parameters
    ----------
    scenario
        Its privacy section is audited.
    sigma
        The run's noise on one upload, over the clipping norm.
    advance
        Called after each of them.
    levels
        How many of the two, the run's first.
    """
    delta = scenario.privacy.delta
    found = []
    for level in (sigma, calibrate_sigma(1.0, delta, 1))[:levels]:
        found.append(_fields(audit_client(scenario, level), level))
        advance()
    return found


def audit_client(
    scenario: Scenario,
    sigma: float,
    build: Callable[..., GradientRelease] = build_release,
) -> Audit:
    """Attack the releases that clients of a scenario build.

    Parameters
    ----------
    scenario
        Its privacy section is audited, at ``sigma``.
    sigma
        What the accountant is told.
    build
        Builds a client's release as ``clients.release.build`` does.
    """
    policy = scenario.privacy
    config = replace(
        scenario,
        privacy=replace(
            policy,
            epsilon=None,
            sigma=sigma,
            uploads=1,
            delta=_DELTA,
            spread="even",
            uplink="coded",
        ),
    )
    mechanism = mechanism_of(policy)
    labels = isinstance(mechanism, Logits)
    classes = 3 if labels else PROBE_WIDTH + 1
    head = nn.Linear(PROBE_WIDTH, classes, bias=False)
    with torch.no_grad():
        # coordinates in the row space of this head are the gradient's own
        head.weight.copy_(zero_sum_basis(PROBE_WIDTH + 1)[:classes])
    # number 2 i holds the first label and 2 i + 1 the second
    samples = [Sample((0,), 0), Sample((0,), 1)] * _UPLOADS

    def start() -> GradientRelease:
        return build(
            config,
            0,
            OwnerTerms(),
            samples=PrivateSamples(samples),
            head=head,
            trains_head=config.head.share == "step",
            pools=True,
            classes=classes,
        )

    if labels:
        return audit_uploads(
            lambda: _label_uploads(start(), classes, policy.clip_norm),
            sigma,
            policy.clip_norm,
            delta=policy.delta,
        )
    return audit_mechanism(
        lambda: _gradient_uploads(start()),
        sigma,
        policy.clip_norm,
        unit=policy.unit,
        delta=policy.delta,
    )


def _gradient_uploads(client: GradientRelease) -> Mechanism:
    done = 0

    def upload(gradient: torch.Tensor, lengths: Any) -> torch.Tensor:
        nonlocal done
        numbers = range(done, done + len(lengths))
        done += len(lengths)
        rows = client(Private(gradient), lengths, numbers).value
        if rows.shape[1] != PROBE_WIDTH and isinstance(client, PrivateRelease):
            rows = client.mechanism.cut(rows.double(), None, PROBE_WIDTH)
        return rows

    return upload


def _label_uploads(client: GradientRelease, classes: int, clip_norm: float) -> Uploads:
    corners = label_corners(classes, clip_norm)[:2]
    direction = (corners[0] - corners[1]) / (2 * clip_norm)
    middle = corners.mean(0)
    done = 0

    def upload(first: Bools) -> Floats:
        nonlocal done
        numbers = 2 * np.arange(done, done + len(first)) + np.where(first, 0, 1)
        done += len(first)
        nothing = Private(torch.empty(0))
        rows = client(nothing, [1] * len(first), numbers.tolist()).value.double()
        projected: Floats = ((rows - middle) @ direction).numpy()
        return projected

    return upload


def _fields(found: Audit, sigma: float) -> dict[str, Any]:
    return {
        "sigma": sigma,
        "releases": found.releases,
        "confidence": found.confidence,
        "epsilon_one_upload": found.epsilon,
        "epsilon_lower_bound": found.epsilon_lower,
        "by_attacker_mu": found.by_attacker,
        "mu": found.mu,
        "mu_lower_bound": found.mu_lower,
        "passed": found.passed,
    }
