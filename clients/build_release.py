"""What of a client's data may leave, from the scenario and the owner's terms.

The scenario, which comes from the server, says how much noise a run has. The owner's own terms
(``clients.terms``) are in the node configuration.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable, Sequence

from torch import nn

from clients.private import PrivateRelease
from clients.randomised import RandomisedRelease
from clients.release import GradientRelease, PlainRelease
from clients.terms import OwnerTerms
from clients.upload_noise import UploadNoise
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.labels import RandomisedLabels
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.noise import InsecureNoise, NoiseSource, SystemNoise
from fedlora.privacy.plan import check_release, label_epsilon, upload_plan
from fedlora.privacy.policy import PrivacyPolicy
from fedlora.tasks.base import Sample
from fedlora.tasks.data import Record


def build_release(
    scenario: Scenario,
    number: int,
    terms: OwnerTerms,
    *,
    samples: Sequence[Sample],
    contents: Sequence[bytes],
    head: nn.Module,
    trains_head: bool,
    pools: bool,
    classes: int,
) -> GradientRelease:
    """Return a client's release, after the owner's limit has agreed to the plan.

    Parameters
    ----------
    scenario, number
        The run, and the client's number.
    terms
        The owner's.
    samples
        Training samples.
    contents
        What makes each sample itself, training samples first, then held-out ones; see ``content``.
    head, trains_head
        The client's head, and whether heads train.
    pools
        Whether the server pools.
    classes
        Number of classes.

    Raises
    ------
    FedloraError
        When the run asks for more than the owner allows.
    """
    policy = scenario.privacy
    if not policy.enabled:
        if terms.limit is not None:
            raise FedloraError(
                f"client {number} has privacy-epsilon {terms.limit.epsilon:g} but the run has no "
                "noise; set privacy.epsilon in its scenario"
            )
        return PlainRelease()
    check_release(scenario, pools=pools, trains_head=trains_head)
    reports = scenario.evaluate.report and terms.reports
    noise, receiver = _sources(policy, number, deployed=terms.deployed)
    policy.check_samples(len(samples))
    if policy.release == "labels":
        return _randomised(scenario, number, terms, contents, noise=noise, reports=reports)
    plan = upload_plan(scenario, len(samples))
    ledger, ids = None, list[int]()
    if terms.ledger is not None:
        ledger = Ledger(terms.ledger, str(number), terms.limit)
        try:
            ids = ledger.sample_ids(contents)
            ledger.check_plan(ids[: len(samples)], plan.sigma, plan.uploads)
            if policy.activation_sigma is not None:
                ledger.check_plan(ids, policy.activation_sigma, 1)
        except FedloraError:
            ledger.close()
            raise
    upload_noise = UploadNoise(
        policy,
        plan,
        str(number),
        r_max=scenario.lora.r_max,
        sigma_min=terms.limit.min_sigma if terms.limit else 0.0,
        source=noise,
        receiver=receiver,
    )
    return PrivateRelease(
        scenario,
        plan,
        targets=[sample.target for sample in samples],
        head=head,
        classes=classes,
        noise=noise,
        upload_noise=upload_noise,
        reports_metrics=reports,
        ledger=ledger,
        ids=ids,
    )


def _randomised(
    scenario: Scenario,
    number: int,
    terms: OwnerTerms,
    contents: Sequence[bytes],
    *,
    noise: NoiseSource,
    reports: bool,
) -> RandomisedRelease:
    """Return the release of gradients that come from randomised labels."""
    policy, epsilon = scenario.privacy, label_epsilon(scenario.privacy)
    below: Callable[[int], int] = secrets.randbelow
    if policy.insecure_noise_seed is not None:
        below = random.Random(f"{policy.insecure_noise_seed}/{number}").randrange
    ledger, ids, path = None, list[int](), None
    if terms.ledger is not None:
        ledger = Ledger(terms.ledger, str(number), terms.limit)
        path = terms.ledger.with_name(terms.ledger.name + ".labels")
    try:
        if ledger is not None:
            ids = ledger.sample_ids(contents)
        labels = RandomisedLabels(
            path, scenario.task.labels, epsilon, below, column=scenario.data.label
        )
        return RandomisedRelease(
            policy, labels, noise=noise, reports_metrics=reports, ledger=ledger, ids=ids
        )
    except FedloraError:
        if ledger is not None:
            ledger.close()
        raise


def _sources(
    policy: PrivacyPolicy, number: int, *, deployed: bool
) -> tuple[NoiseSource, NoiseSource]:
    """Return the sources of the client's noise and, in a simulation, of the receiver's.

    Raises
    ------
    FedloraError
        When a device is asked for noise that the server knows, or that nobody adds.
    """
    seed = policy.insecure_noise_seed
    if deployed and seed is not None:
        raise FedloraError(
            f"privacy.insecure_noise_seed is {seed}, so the server could remove the noise; a "
            "device takes part only without it"
        )
    if deployed and policy.uplink == "analog":
        raise FedloraError(
            "privacy.uplink is analog, which counts a receiver's noise that this link does not "
            "have; a device takes part only with privacy.uplink coded"
        )
    if seed is None:
        return SystemNoise(), SystemNoise()
    return InsecureNoise(seed, str(number)), InsecureNoise(seed, f"{number}/receiver")


def content(record: Record) -> bytes:
    """Return what makes a record itself: its values, whatever a scenario calls its columns."""
    return json.dumps(list(record.values()), ensure_ascii=False).encode()
