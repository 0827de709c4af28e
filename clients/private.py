"""A client's privacy: clipping and noise, and a budget that no server can stretch.

The scenario, which comes from the server, says how much noise a run has. The owner's own terms are
in the node configuration: ``privacy-epsilon``, ``-delta``, ``-min-sigma`` and ``-tight`` limit what
any sample may ever spend, ``privacy-ledger`` is where that is kept, and ``privacy-report`` allows
held-out metrics to be reported.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from clients.release import GradientRelease, PlainRelease
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.filter import add_up, upload_cost
from fedlora.privacy.head_space import label_corners, label_reach, row_space_coordinates
from fedlora.privacy.ledger import BudgetSpentError, Ledger
from fedlora.privacy.mechanism import release
from fedlora.privacy.noise import InsecureNoise, NoiseSource, SystemNoise
from fedlora.privacy.plan import UploadPlan, check_release, upload_plan
from fedlora.privacy.policy import ClientLimit
from fedlora.tasks.base import Sample
from fedlora.tasks.data import Record

_REPORT, _LEDGER = "privacy-report", "privacy-ledger"


@dataclass(frozen=True)
class OwnerTerms:
    """What a data owner decides, out of the server's reach.

    Attributes
    ----------
    ledger
        Where the budget is kept; None counts in memory, for a simulation that writes nothing.
    limit
        The most that a sample may spend, over all runs.
    deployed
        Whether this is a device, where noise has to be secret.
    reports
        Whether held-out metrics may be reported where the scenario asks for them.
    """

    ledger: Path | None = None
    limit: ClientLimit | None = None
    deployed: bool = False
    reports: bool = True

    @classmethod
    def from_node_config(cls, config: Mapping[str, Any], client: int) -> Self:
        """Read a device's terms.

        Raises
        ------
        FedloraError
            When a value is out of range.
        """
        default = Path.home() / ".fedlora" / f"privacy-ledger-{client}"
        consent = str(config.get(_REPORT, "false")).lower()
        if consent not in ("true", "false"):
            raise FedloraError(f"node config {_REPORT} is {consent!r}; set true or false")
        return cls(
            ledger=Path(str(config.get(_LEDGER, default))).expanduser(),
            limit=ClientLimit.from_node_config(config),
            deployed=True,
            reports=consent == "true",
        )


class PrivateRelease(GradientRelease):
    """Clips, charges and noises everything that depends on a label.

    Parameters
    ----------
    scenario
        Its privacy section is enabled.
    client
        Identifier of the client.
    plan
        Uploads of a sample that the run is calibrated for, and the noise on each.
    targets
        Class of each training sample; needed for the release ``logits`` alone.
    head
        The client's head, which holds the public weight for the release ``row_space``.
    classes
        Number of classes.
    noise
        Source of the noise.
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
        client: str,
        plan: UploadPlan,
        *,
        targets: Sequence[Any],
        head: nn.Module,
        classes: int,
        noise: NoiseSource,
        reports_metrics: bool,
        ledger: Ledger | None = None,
        ids: Sequence[int] = (),
    ) -> None:
        self.policy = scenario.privacy
        self.plan = plan
        self.reports_metrics = reports_metrics
        self._client = client
        self._targets = targets
        self._head = head
        self._noise = noise
        self._ledger = ledger
        self._ids = ids
        self._corners = label_corners(classes, 1.0) if self.policy.release == "logits" else None
        self._uploads: Counter[int] = Counter()
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
        self._pay_gradients(samples)
        return release(
            values,
            lengths,
            clip_norm=self.policy.clip_norm,
            sigma=self.plan.sigma,
            noise=self._noise,
            unit=self.policy.unit,
        ).values

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
            return {"rho": self._ledger.rho, "sigma": self.plan.sigma}
        return {"rho": max(self._rho.values(), default=0.0), "sigma": self.plan.sigma}

    def close(self) -> None:
        """See ``GradientRelease``."""
        if self._ledger is not None:
            self._ledger.close()

    def _noisy_labels(self, samples: Sequence[int]) -> torch.Tensor:
        """Return each sample's noised label, which is drawn and paid when it first leaves."""
        assert self._corners is not None
        fresh = [s for s in dict.fromkeys(samples) if s not in self._labels]
        if fresh:
            self._pay_gradients(fresh)
            reach, clip_norm = label_reach(len(self._corners)), self.policy.clip_norm
            noised = release(
                self._corners[[self._targets[s] for s in fresh]] * clip_norm,
                [1] * len(fresh),
                clip_norm=reach * clip_norm,  # the corners' norm: none is clipped
                sigma=self.plan.sigma / reach,
                noise=self._noise,
            ).values
            self._labels |= zip(fresh, noised, strict=True)
        return torch.stack([self._labels[sample] for sample in samples])

    def _pay_gradients(self, samples: Sequence[int]) -> None:
        """Charge one upload of each sample's gradient, within the plan."""
        wanted = Counter(samples)
        most = max(self._uploads[s] + n for s, n in wanted.items())
        if most > self.plan.uploads:
            raise BudgetSpentError(
                f"the noise of this run was planned for {self.plan.uploads} uploads of a sample "
                f"and the server asks client {self._client} for upload {most}; it leaves the run"
            )
        self._charge(samples, self.plan.sigma)
        self._uploads += wanted

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
    noise: NoiseSource = SystemNoise()
    if policy.insecure_noise_seed is not None:
        if terms.deployed:
            raise FedloraError(
                f"privacy.insecure_noise_seed is {policy.insecure_noise_seed}, so the server could "
                "remove the noise; a device takes part only without it"
            )
        noise = InsecureNoise(policy.insecure_noise_seed, str(number))
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
    return PrivateRelease(
        scenario,
        str(number),
        plan,
        targets=[sample.target for sample in samples],
        head=head,
        classes=classes,
        noise=noise,
        reports_metrics=scenario.evaluate.report and terms.reports,
        ledger=ledger,
        ids=ids,
    )


def content(record: Record) -> bytes:
    """Return what makes a record itself: its values, whatever a scenario calls its columns."""
    return json.dumps(list(record.values()), ensure_ascii=False).encode()
