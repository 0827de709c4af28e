"""What of a client's data may leave, from the scenario and the owner's terms.

The scenario, which comes from the server, says how much noise a run has. The owner's own terms
(``clients.owner.terms``) are in the node configuration.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import nn

from clients.owner import (
    Charges,
    Door,
    Origins,
    OwnerTerms,
    PrivateSamples,
    Reporting,
    plan_reporting,
)
from clients.release.activations import NoisyActivations
from clients.release.base import GradientRelease, PlainRelease
from clients.release.messages import MessageRelease
from clients.release.private import UploadRelease
from clients.release.randomised import RandomisedRelease
from clients.release.upload_noise import UploadNoise
from fedlora.config import ForecastConfig, PrivacyPolicy, Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms import (
    InsecureNoise,
    KeyStreamNoise,
    Labels,
    Logits,
    Mechanism,
    NoisedLabels,
    NoiseKeys,
    RandomisedLabels,
    ReleasePlan,
    SystemNoise,
    mechanism_of,
)
from fedlora.privacy.plan import plan_release
from fedlora.reasons import about


def build_release(
    scenario: Scenario,
    number: int,
    terms: OwnerTerms,
    *,
    samples: PrivateSamples,
    held_out: int = 0,
    head: nn.Module,
    trains_head: bool,
    pools: bool,
    classes: int,
    origins: Origins | None = None,
    run: str = "",
    model: str = "",
) -> GradientRelease:
    """Return a client's release, after the owner's limit has agreed to the plan.

    Parameters
    ----------
    scenario, number
        The run, and the client's number.
    terms
        The owner's.
    samples, held_out
        Training samples, and how many held-out ones there are.
    head, trains_head
        The client's head, and whether heads train.
    pools
        Whether the server pools, and heads are of classes.
    classes
        Number of classes.
    origins
        The records of training and held-out samples; needed where the owner keeps a ledger.
    run
        Name of the run, by which its plan goes on after a restart; empty where it has none.
    model
        What the activations follow from beside the records, as a name.

    Raises
    ------
    FedloraError
        When the run asks for more than the owner allows, or there is one class only.
    """
    with about("terms"):
        terms.check_mechanism(scenario.privacy.release)
    with about("plugins"):
        mechanism = mechanism_of(scenario.privacy)
    if mechanism is None:
        if terms.limit is not None:
            raise FedloraError(
                f"client {number} has privacy-epsilon {terms.limit.epsilon:g} but the run has no "
                "noise; set privacy.epsilon in its scenario"
            )
        door = Door(terms)
        return PlainRelease(door, Reporting(door))
    plan = plan_release(
        mechanism, scenario, len(samples), classes, pools=pools, trains_head=trains_head
    )
    _check_head(scenario, terms, mechanism, trains_head=trains_head)
    sources = _sources(mechanism.policy, number, deployed=terms.deployed)
    name = f"{run}/{_digest(scenario)}" if run else ""
    charges = Charges.open(terms, str(number), origins, len(samples), name)
    try:
        door = Door(terms, charges.ledger)
        activations = _activations(mechanism, door, sources[0], charges, terms, model)
        reporting = plan_reporting(scenario, terms, door, charges, held_out, sources[0])
        common: dict[str, Any] = {
            "door": door,
            "reporting": reporting,
            "activations": activations,
            "charges": charges,
        }
        if isinstance(mechanism, Labels):
            labels = _labels(scenario, number, terms, mechanism)
            return RandomisedRelease(mechanism, labels, **common)
        upload_noise = _upload_noise(
            scenario, terms, mechanism, plan, charges, str(number), sources
        )
        given = {**common, "upload_noise": upload_noise}
        if isinstance(mechanism, Logits):
            noised = _noised(scenario, terms, name)
            return MessageRelease(
                mechanism, plan, samples=samples, classes=classes, noised=noised, **given
            )
        return UploadRelease(mechanism, plan, head=head, **given)
    except BaseException:
        charges.close()
        raise


def _activations(
    mechanism: Mechanism,
    door: Door,
    noise: KeyStreamNoise,
    charges: Charges,
    terms: OwnerTerms,
    model: str,
) -> NoisyActivations:
    """Return what leaves of the activations, which goes on with what was drawn before a restart."""
    plan = f"{charges.plan}/activations/{model}" if charges.plan else ""
    keys = NoiseKeys()
    if terms.ledger is not None and plan and mechanism.policy.activation_sigma is not None:
        keys = NoiseKeys(terms.ledger.with_name(terms.ledger.name + ".activations"), plan)
    return NoisyActivations(door, mechanism.policy, noise, charges, keys, plan)


def _upload_noise(
    scenario: Scenario,
    terms: OwnerTerms,
    mechanism: Mechanism,
    plan: ReleasePlan,
    charges: Charges,
    client: str,
    sources: tuple[KeyStreamNoise, KeyStreamNoise],
) -> UploadNoise:
    """Return the noise of a plan that the owner's limit has agreed to."""
    upload_noise = UploadNoise(
        mechanism,
        plan,
        client,
        r_max=scenario.lora.r_max,
        sigma_min=terms.limit.min_sigma if terms.limit else 0.0,
        source=sources[0],
        receiver=sources[1],
        done=charges.done(),
    )
    charges.check(scenario.privacy, plan.sigma, upload_noise.needed)
    return upload_noise


def _check_head(
    scenario: Scenario, terms: OwnerTerms, mechanism: Mechanism, *, trains_head: bool
) -> None:
    """Refuse a head that learns from labels as they are beside noised gradients."""
    personal = trains_head and scenario.head.share == "personal"
    if personal and mechanism.noises_gradients and not terms.personal_head:
        raise FedloraError(
            "head.share is personal: the head would learn from labels as they are, and each label "
            "leave traces in other records' uploads that no noise is counted for; run with "
            'head.share step, or allow it with privacy-personal-head="true"'
        )


def _digest(scenario: Scenario) -> str:
    """Return a name for what is paid for: the mechanism, and what labels mean.

    A plan's charges count for that alone, or a cheap run of another mechanism under the same name
    would pay for a dear one.
    """
    task, data, train = scenario.task, scenario.data, scenario.train
    setting: dict[str, object] = {
        "privacy": asdict(scenario.privacy),
        "task": [task.kind, task.max_length, sorted(task.labels)],
        "data": data.meaning,
        "share": scenario.head.share,
        "train": [train.total_steps, train.accumulate, train.batch_size],
        "evaluate": [scenario.evaluate.every, scenario.evaluate.baseline],
    }
    if task.forecast != ForecastConfig():
        setting["forecast"] = asdict(task.forecast)
    text = json.dumps(setting, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _noised(scenario: Scenario, terms: OwnerTerms, plan: str) -> NoisedLabels | None:
    """Return the labels that were noised before a restart, beside the owner's ledger."""
    if terms.ledger is None or not plan:
        return None
    path = terms.ledger.with_name(terms.ledger.name + ".noised")
    return NoisedLabels(path, {"plan": plan, "labels": list(scenario.task.labels)})


def _labels(
    scenario: Scenario, number: int, terms: OwnerTerms, mechanism: Labels
) -> RandomisedLabels:
    """Return a client's randomised labels."""
    policy = scenario.privacy
    below: Callable[[int], int] = secrets.randbelow
    if policy.insecure_noise_seed is not None:
        below = random.Random(f"{policy.insecure_noise_seed}/{number}").randrange
    path = terms.ledger and terms.ledger.with_name(terms.ledger.name + ".labels")
    return RandomisedLabels(
        path,
        scenario.task.labels,
        mechanism.charge().epsilon,
        below,
        column=scenario.data.label,
        draw=mechanism.randomise,
    )


def _sources(
    policy: PrivacyPolicy, number: int, *, deployed: bool
) -> tuple[KeyStreamNoise, KeyStreamNoise]:
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
