"""A client's privacy: clipping and noise, and a budget that no server can stretch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from clients.activations import NoisyActivations
from clients.release import GradientRelease
from clients.upload_noise import Noise, UploadNoise
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.filter import add_up, upload_cost
from fedlora.privacy.head_space import label_corners, label_reach, row_space_coordinates
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.mechanism import release
from fedlora.privacy.noise import NoiseSource
from fedlora.privacy.noised_labels import NoisedLabels
from fedlora.privacy.plan import UploadPlan, still_needed
from fedlora.tasks.base import Sample


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
    run
        Name of the run in the ledger; empty where it has none.
    noised
        Labels that were noised before a restart.
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
        run: str = "",
        noised: NoisedLabels | None = None,
    ) -> None:
        self.policy = scenario.privacy
        self.plan = plan
        self.reports_metrics = reports_metrics
        self._targets = targets
        self._head = head
        self._upload_noise = upload_noise
        self._ledger = ledger
        self._ids = ids
        self._run = run
        self._sigma_now = plan.sigma
        self._label_sigma: dict[int, float] = {}
        self._noised = noised or NoisedLabels(None, {})
        self._corners = label_corners(classes, 1.0) if self.policy.release == "logits" else None
        self._rho: dict[int, float] = {}
        self._labels: dict[int, torch.Tensor] = {}
        self._activations = NoisyActivations(self.policy, noise, self._charge)

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
        self._sigma_now = _mean_sigma([noise.applied for noise in noises])
        return self._add_noise(values, lengths, noises, self.policy.clip_norm)

    def activation(
        self, packed: torch.Tensor, lengths: Sequence[int], samples: Sequence[int]
    ) -> torch.Tensor:
        """Return the activation, noised where the policy says so: once, and repeated afterwards."""
        return self._activations(packed, lengths, samples)

    def spent(self) -> Mapping[str, float]:
        """See ``GradientRelease``; where there is a ledger, over all that it has booked.

        So a client that was restarted in the middle of a run does not state too little.
        """
        sigma = {"sigma": self._upload_noise.least, "sigma_now": self._sigma_now}
        if self._ledger is None:
            return {"rho": max(self._rho.values(), default=0.0), **sigma}
        labels = self._ledger.label_epsilon
        told = {"label_epsilon": labels} if labels else {}
        return {"rho": self._ledger.rho, **sigma, **told}

    def planned(self) -> Mapping[str, float]:
        """See ``GradientRelease``."""
        ids = self._ids or range(len(self._targets))
        rest = still_needed(self.policy, ids, len(self._targets), self._upload_noise.needed)
        if self._ledger is None:
            return {"rho_planned": max(rest.values()), "label_epsilon": 0.0}
        rho = self._ledger.planned(rest)
        return {"rho_planned": rho, "label_epsilon": self._ledger.label_epsilon}

    def begin_phase(self) -> None:
        """See ``GradientRelease``."""
        self._upload_noise.begin_phase()

    def begin_round(self, channel: Mapping[str, Any] | None) -> None:
        """See ``GradientRelease``."""
        self._upload_noise.begin_round(channel)

    def begin_step(self, rank: object, samples: Sequence[int]) -> None:
        """See ``GradientRelease``."""
        self._upload_noise.begin_step(rank)

    def training(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """See ``GradientRelease``; what leaves is noised later."""
        return samples

    def close(self) -> None:
        """See ``GradientRelease``."""
        if self._ledger is not None:
            self._ledger.close()

    def _noisy_labels(self, samples: Sequence[int]) -> torch.Tensor:
        """Return each sample's noised label, which is drawn and paid when it first leaves."""
        assert self._corners is not None
        fresh = [s for s in dict.fromkeys(samples) if s not in self._labels]
        if fresh:
            names = {s: (self._ids[s] if self._ids else s, self._targets[s]) for s in fresh}
            known = {s: kept for s in fresh if (kept := self._noised.get(*names[s])) is not None}
            due = [s for s in fresh if s not in known or not self._upload_noise.counted(s)]
            width = self._corners.shape[1]
            noises = self._upload_noise.take(due, [width] * len(due))
            taken = [(s, noise) for s, noise in zip(due, noises, strict=True) if s not in known]
            if taken:
                new, drawn = [s for s, _ in taken], self._draw_labels(taken)
                self._noised.keep(
                    [names[s] for s in new],
                    [(row.tolist(), n.applied) for (_, n), row in zip(taken, drawn, strict=True)],
                )
                self._label_sigma |= {s: noise.applied for s, noise in taken}
                self._labels |= zip(new, drawn, strict=True)
            try:
                self._pay(due, noises)
            except FedloraError:
                for s in fresh:
                    self._labels.pop(s, None)
                raise
            self._label_sigma |= {s: sigma for s, (_, sigma) in known.items()}
            self._labels |= {s: torch.tensor(message) for s, (message, _) in known.items()}
        self._sigma_now = _mean_sigma([self._label_sigma[sample] for sample in samples])
        return torch.stack([self._labels[sample] for sample in samples])

    def _draw_labels(self, taken: Sequence[tuple[int, Noise]]) -> torch.Tensor:
        """Return noised labels, shape (samples, classes - 1)."""
        assert self._corners is not None
        corners = self._corners[[self._targets[s] for s, _ in taken]] * self.policy.clip_norm
        reach = label_reach(len(self._corners))  # the corners' norm over C: none is clipped
        noises = [noise for _, noise in taken]
        return self._add_noise(corners, [1] * len(taken), noises, self.policy.clip_norm, reach)

    def _pay_gradients(
        self, samples: Sequence[int], lengths: Sequence[int], width: int
    ) -> list[Noise]:
        """Charge one upload of each sample's gradient within the plan; return their noise."""
        token = self.policy.unit == "token"
        numbers = [width if token else length * width for length in lengths]
        noises = self._upload_noise.take(samples, numbers)
        self._pay(samples, noises)
        return noises

    def _pay(self, samples: Sequence[int], noises: Sequence[Noise]) -> None:
        """Book one upload of each sample that the run's plan counts, on disk first."""
        for sigma, pairs in itertools.groupby(
            zip(samples, noises, strict=True), key=lambda pair: pair[1].charged
        ):
            self._charge([sample for sample, _ in pairs], sigma, self._run)

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

    def _charge(self, samples: Sequence[int], sigma: float, run: str = "") -> None:
        """Book an upload of each sample, on disk first."""
        if self._ledger is not None:
            self._ledger.charge([self._ids[s] for s in samples], sigma, run)
        for sample in samples:
            self._rho[sample] = add_up(self._rho.get(sample, 0.0), upload_cost(sigma))


def _mean_sigma(sigmas: Sequence[float]) -> float:
    """Return the noise of an upload as one: the root mean square over its samples."""
    return math.sqrt(sum(sigma**2 for sigma in sigmas) / len(sigmas))
