"""What of a client's data may leave, from the scenario and the owner's terms.

The scenario, which comes from the server, says how much noise a run has. The owner's own terms
(``clients.terms``) are in the node configuration.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from fedlora.privacy.noised_labels import NoisedLabels
from fedlora.privacy.plan import (
    check_classes,
    check_release,
    label_epsilon,
    still_needed,
    upload_plan,
)
from fedlora.privacy.policy import PrivacyPolicy
from fedlora.tasks.base import Sample
from fedlora.tasks.data import Record


@dataclass(frozen=True)
class Origins:
    """The records that a client's samples come from, by which its ledger knows them.

    Attributes
    ----------
    contents
        What makes each of the client's records itself; see ``content``.
    sources
        Place in it of each sample's record, training samples first, then held-out ones.
    """

    contents: Sequence[bytes] = ()
    sources: Sequence[int] = ()

    def ids(self, ledger: Ledger) -> list[int]:
        """Return each sample's identifier; samples of one record share what it may spend."""
        records = ledger.sample_ids(self.contents)
        return [records[source] for source in self.sources]


def origins(rows: Sequence[Sequence[Record]], samples: Sequence[Sequence[Sample]]) -> Origins:
    """Return where samples come from.

    Parameters
    ----------
    rows, samples
        Training and held-out records, and the samples made of them.

    Raises
    ------
    FedloraError
        When a sample does not name its record.
    """
    sources, start = list[int](), 0
    for records, made in zip(rows, samples, strict=True):
        for sample in made:
            if not 0 <= sample.source < len(records):
                raise FedloraError(
                    f"a sample has source {sample.source} of {len(records)} records, so its "
                    "owner's budget cannot be found; let the task's samples() set it"
                )
            sources.append(start + sample.source)
        start += len(records)
    return Origins([content(record) for part in rows for record in part], sources)


def build_release(
    scenario: Scenario,
    number: int,
    terms: OwnerTerms,
    *,
    samples: Sequence[Sample],
    head: nn.Module,
    trains_head: bool,
    pools: bool,
    classes: int,
    origins: Origins | None = None,
    run: str = "",
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
    head, trains_head
        The client's head, and whether heads train.
    pools
        Whether the server pools.
    classes
        Number of classes.
    origins
        The records of training and held-out samples; needed where the owner keeps a ledger.
    run
        Name of the run, by which its plan goes on after a restart; empty where it has none.

    Raises
    ------
    FedloraError
        When the run asks for more than the owner allows, or there is one class only.
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
    check_classes(classes)
    reports = scenario.evaluate.report and terms.reports
    noise, receiver = _sources(policy, number, deployed=terms.deployed)
    policy.check_samples(len(samples))
    if policy.release == "labels":
        return _randomised(scenario, number, terms, origins, noise=noise, reports=reports)
    plan = upload_plan(scenario, len(samples))
    ledger, ids = None, list[int]()
    try:
        if terms.ledger is not None:
            ledger = Ledger(terms.ledger, str(number), terms.limit)
            ids = (origins or Origins()).ids(ledger)
        upload_noise = UploadNoise(
            policy,
            plan,
            str(number),
            r_max=scenario.lora.r_max,
            sigma_min=terms.limit.min_sigma if terms.limit else 0.0,
            source=noise,
            receiver=receiver,
            done={s: ledger.done(run, i) for s, i in enumerate(ids)} if ledger else None,
        )
        if ledger is not None:
            ledger.check_floor(plan.sigma)
            ledger.check_plan(still_needed(policy, ids, len(samples), upload_noise.needed))
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
            run=run,
            noised=_noised(scenario, terms, run, plan.sigma),
        )
    except FedloraError:
        if ledger is not None:
            ledger.close()
        raise


def _noised(scenario: Scenario, terms: OwnerTerms, run: str, sigma: float) -> NoisedLabels | None:
    """Return the labels that were noised before a restart, beside the owner's ledger."""
    policy = scenario.privacy
    if terms.ledger is None or not run or policy.release != "logits":
        return None
    path = terms.ledger.with_name(terms.ledger.name + ".noised")
    setting = {"run": run, "labels": list(scenario.task.labels), "uplink": policy.uplink}
    return NoisedLabels(path, setting | {"sigma": sigma, "clip_norm": policy.clip_norm})


def _randomised(
    scenario: Scenario,
    number: int,
    terms: OwnerTerms,
    origins: Origins | None,
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
            ids = (origins or Origins()).ids(ledger)
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
