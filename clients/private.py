"""A client's privacy: clipping and noise, and a budget that no server can stretch.

The scenario, which comes from the server, says how much noise a run has. The owner's own terms
(``clients.terms``) are in the node configuration.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from clients.release import GradientRelease, PlainRelease
from clients.terms import OwnerTerms
from clients.upload_noise import Noise, UploadNoise
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.filter import add_up, upload_cost
from fedlora.privacy.head_space import label_corners, label_reach, row_space_coordinates
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.mechanism import release
from fedlora.privacy.noise import InsecureNoise, NoiseSource, SystemNoise
from fedlora.privacy.plan import UploadPlan, check_release, upload_plan
from fedlora.privacy.policy import PrivacyPolicy
from fedlora.tasks.base import Sample
from fedlora.tasks.data import Record


class PrivateRelease(GradientRelease):
    """Clips, charges and noises everything that depends on a label.

    Parameters
    ----------
    scenario
        Its privacy section is enabled.
    plan
        Uploads of a sample that the run is calibrated for, and the noise on each.
    targets
        Class of each training sample; needed for the release ``logits`` alone.
    head
        The client's head, which holds the public weight for the release ``row_space``.
    classes
        Number of classes.
    noise
        Source of the noise on activations.
    upload_noise
        Chooses the noise on what is uploaded for gradients.
    reports_metrics
        Whether held-out metrics may be reported.
    ledger, ids
        The budget on disk, and each sample's identifier in it, held-out samples last.
    """

    sample_mean = True
    reports_losses = False
    uploads_head = False

    def __init__(
        self,
        scenario: Scenario,
        plan: UploadPlan,
        *,
        targets: Sequence[Any],
        head: nn.Module,
        classes: int,
        noise: NoiseSource,
        upload_noise: UploadNoise,
        reports_metrics: bool,
        ledger: Ledger | None = None,
        ids: Sequence[int] = (),
    ) -> None:
        self.policy = scenario.privacy
        self.plan = plan
        self.reports_metrics = reports_metrics
        self._targets = targets
        self._head = head
        self._noise = noise
        self._upload_noise = upload_noise
        self._ledger = ledger
        self._ids = ids
        self._corners = label_corners(classes, 1.0) if self.policy.release == "logits" else None
        self._rho: dict[int, float] = {}
        self._labels: dict[int, torch.Tensor] = {}
        self._activations: dict[int, torch.Tensor] = {}

    def __call__(
        self, gradient: torch.Tensor, lengths: Sequence[int], samples: Sequence[int]
    ) -> torch.Tensor:
        """Charge the budget, then return the noised release.

        Raises
        ------
        BudgetSpentError
            When the plan or the owner's limit does not pay for it; nothing leaves.
        """
        if self._corners is not None:
            return self._noisy_labels(samples)
        values = gradient
        if self.policy.release == "row_space":
            values = row_space_coordinates(gradient, next(self._head.parameters()))
        noises = self._pay_gradients(samples, lengths, values.shape[1])
        return self._add_noise(values, lengths, noises, self.policy.clip_norm)

    def activation(
        self, packed: torch.Tensor, lengths: Sequence[int], samples: Sequence[int]
    ) -> torch.Tensor:
        """Return the activation, noised where the policy says so: once, and repeated afterwards."""
        sigma = self.policy.activation_sigma
        if sigma is None:
            return packed
        parts = dict(zip(samples, torch.split(packed.detach(), list(lengths)), strict=True))
        fresh = [sample for sample in parts if sample not in self._activations]
        if fresh:
            self._charge(fresh, sigma)
            sizes = [len(parts[sample]) for sample in fresh]
            noised = release(
                torch.cat([parts[sample] for sample in fresh]),
                sizes,
                clip_norm=self.policy.activation_clip_norm,
                sigma=sigma,
                noise=self._noise,
                unit=self.policy.unit,
            ).values
            self._activations |= zip(fresh, torch.split(noised, sizes), strict=True)
        return torch.cat([self._activations[sample] for sample in samples]).to(packed.dtype)

    def spent(self) -> Mapping[str, float]:
        """See ``GradientRelease``; where there is a ledger, over all that it has booked.

        So a client that was restarted in the middle of a run does not state too little.
        """
        if self._ledger is not None:
            return {"rho": self._ledger.rho, "sigma": self._upload_noise.least}
        return {"rho": max(self._rho.values(), default=0.0), "sigma": self._upload_noise.least}

    def begin_round(self, channel: Mapping[str, Any] | None) -> None:
        """See ``GradientRelease``."""
        self._upload_noise.begin_round(channel)

    def begin_step(self, rank: object) -> None:
        """See ``GradientRelease``."""
        self._upload_noise.begin_step(rank)

    def close(self) -> None:
        """See ``GradientRelease``."""
        if self._ledger is not None:
            self._ledger.close()

    def _noisy_labels(self, samples: Sequence[int]) -> torch.Tensor:
        """Return each sample's noised label, which is drawn and paid when it first leaves."""
        assert self._corners is not None
        fresh = [s for s in dict.fromkeys(samples) if s not in self._labels]
        if fresh:
            noises = self._pay_gradients(fresh, [1] * len(fresh), self._corners.shape[1])
            corners = self._corners[[self._targets[s] for s in fresh]] * self.policy.clip_norm
            reach = label_reach(len(self._corners))  # the corners' norm over C: none is clipped
            noised = self._add_noise(
                corners, [1] * len(fresh), noises, self.policy.clip_norm, reach
            )
            self._labels |= zip(fresh, noised, strict=True)
        return torch.stack([self._labels[sample] for sample in samples])

    def _pay_gradients(
        self, samples: Sequence[int], lengths: Sequence[int], width: int
    ) -> list[Noise]:
        """Charge one upload of each sample's gradient within the plan; return their noise."""
        token = self.policy.unit == "token"
        numbers = [width if token else length * width for length in lengths]
        noises = self._upload_noise.take(samples, numbers)
        for sigma, pairs in itertools.groupby(
            zip(samples, noises, strict=True), key=lambda pair: pair[1].charged
        ):
            self._charge([sample for sample, _ in pairs], sigma)
        return noises

    def _add_noise(
        self,
        values: torch.Tensor,
        lengths: Sequence[int],
        noises: Sequence[Noise],
        clip_norm: float,
        reach: float = 1.0,
    ) -> torch.Tensor:
        """Clip to ``reach`` times the norm and add each sample's noise, in runs of equal noise."""
        released, rows = [], list(torch.split(values, list(lengths)))
        for noise, run in itertools.groupby(range(len(rows)), key=noises.__getitem__):
            places = list(run)
            released.append(
                release(
                    torch.cat([rows[i] for i in places]),
                    [lengths[i] for i in places],
                    clip_norm=reach * clip_norm,
                    sigma=noise.applied / reach,
                    noise=self._upload_noise.source(noise, clip_norm),
                    unit=self.policy.unit,
                ).values
            )
        return torch.cat(released)

    def _charge(self, samples: Sequence[int], sigma: float) -> None:
        """Book an upload of each sample, on disk first."""
        if self._ledger is not None:
            self._ledger.charge([self._ids[s] for s in samples], sigma)
        for sample in samples:
            self._rho[sample] = add_up(self._rho.get(sample, 0.0), upload_cost(sigma))


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
    noise, receiver = _sources(policy, number, deployed=terms.deployed)
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
        reports_metrics=scenario.evaluate.report and terms.reports,
        ledger=ledger,
        ids=ids,
    )


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
