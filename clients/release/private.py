"""A client's privacy: clipping and noise, and a budget that no server can stretch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from clients.owner import (
    Charges,
    Door,
    Leaving,
    Private,
    PrivateSamples,
    Reporting,
    together,
    width_of,
)
from clients.release.activations import NoisyActivations
from clients.release.base import GradientRelease, T
from clients.release.upload_noise import Noise, UploadNoise
from fedlora.config import Scenario
from fedlora.privacy.ledger import Receipt
from fedlora.privacy.mechanisms import (
    NoisedLabels,
    NoiseSource,
    label_corners,
    label_reach,
    release,
    row_space_coordinates,
)
from fedlora.privacy.plan import ReleasePlan


class PrivateRelease(GradientRelease):
    """Clips, charges and noises everything that depends on a label.

    Parameters
    ----------
    scenario
        Its privacy section is enabled.
    plan
        Uploads of a sample that the run is calibrated for, and the noise on each.
    door, reporting
        Where it leaves, and how held-out counts do.
    samples
        Training samples; their classes are needed for the release ``logits`` alone.
    head
        The client's head, which holds the public weight for the release ``row_space``.
    classes
        Number of classes.
    noise
        Source of the noise on activations.
    upload_noise
        Chooses the noise on what is uploaded for gradients.
    charges
        Where its samples' uploads are booked.
    noised
        Labels that were noised before a restart.
    """

    sample_mean = True

    def __init__(
        self,
        scenario: Scenario,
        plan: ReleasePlan,
        *,
        door: Door,
        reporting: Reporting,
        samples: PrivateSamples,
        head: nn.Module,
        classes: int,
        noise: NoiseSource,
        upload_noise: UploadNoise,
        charges: Charges,
        noised: NoisedLabels | None = None,
    ) -> None:
        self.policy = scenario.privacy
        self.plan = plan
        self.door, self.reporting = door, reporting
        self._samples = samples
        self._head = head
        self._upload_noise = upload_noise
        self._charges = charges
        self._sigma_now = plan.sigma
        self._label_sigma: dict[int, float] = {}
        self._corners: torch.Tensor | None = None
        self._noised: NoisedLabels | None = None
        if self.policy.release == "logits":
            self._noised = noised or NoisedLabels(None, {})
            # a record of none of the classes is released as the corners' middle
            corners = label_corners(classes, 1.0)
            self._corners = torch.cat([corners, torch.zeros_like(corners[:1])])
        self._labels: dict[int, Private[torch.Tensor]] = {}
        self._receipts: dict[int, Sequence[Receipt]] = {}
        self._activations = NoisyActivations(door, self.policy, noise, charges)

    def __call__(
        self, gradient: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """Charge the budget, then return the noised release.

        Raises
        ------
        BudgetSpentError
            When the plan or the owner's limit does not pay for it; nothing leaves.
        """
        if self._corners is not None:
            return self._noisy_labels(samples)
        values, width = gradient, width_of(gradient)
        if self.policy.release == "row_space":
            weight = next(self._head.parameters())
            values = gradient.map(lambda g: row_space_coordinates(g, weight))
            width = len(weight) - 1
        noises, receipts = self._pay_gradients(samples, lengths, width)
        self._sigma_now = _mean_sigma([noise.applied for noise in noises])
        noised = values.map(lambda v: self._add_noise(v, lengths, noises, self.policy.clip_norm))
        return self.door.released(noised, self._charges.records(samples), receipts)

    def activation(
        self, packed: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """Return the activation, noised where the policy says so: once, and repeated afterwards."""
        return self._activations(packed, lengths, samples)

    def exact(self, value: Private[T]) -> Leaving[T] | None:
        """See ``GradientRelease``; no noise covers it, so it stays."""
        del value
        return None

    def spent(self) -> Mapping[str, float]:
        """See ``GradientRelease``."""
        sigma = {"sigma": self._upload_noise.least, "sigma_now": self._sigma_now}
        labels = self._charges.label_epsilon
        told = {"label_epsilon": labels} if labels else {}
        return {"rho": self._charges.rho, **sigma, **told}

    def planned(self) -> Mapping[str, float]:
        """See ``GradientRelease``."""
        rest = self._charges.needed(self.policy, self._upload_noise.needed)
        return {
            "rho_planned": self._charges.planned(rest),
            "label_epsilon": self._charges.label_epsilon,
        }

    def begin_phase(self) -> None:
        """See ``GradientRelease``."""
        self._upload_noise.begin_phase()

    def begin_round(self, channel: Mapping[str, Any] | None) -> None:
        """See ``GradientRelease``."""
        self._upload_noise.begin_round(channel)

    def begin_step(self, rank: object, samples: Sequence[int]) -> None:
        """See ``GradientRelease``."""
        self._upload_noise.begin_step(rank)

    def training(self, samples: PrivateSamples) -> PrivateSamples:
        """See ``GradientRelease``; what leaves is noised later."""
        return samples

    def close(self) -> None:
        """See ``GradientRelease``."""
        self._charges.close()

    def _noisy_labels(self, samples: Sequence[int]) -> Leaving[torch.Tensor]:
        """Return each sample's noised label, which is drawn and paid when it first leaves."""
        assert self._corners is not None and self._noised is not None
        fresh = [s for s in dict.fromkeys(samples) if s not in self._labels]
        if fresh:
            known = {s: self._noised.get(self._charges.record(s)) for s in fresh}
            kept = {s: found for s, found in known.items() if found}
            due = [s for s in fresh if s not in kept or not self._upload_noise.counted(s)]
            width = self._corners.shape[1]
            noises = self._upload_noise.take(due, [width] * len(due))
            taken = [(s, noise) for s, noise in zip(due, noises, strict=True) if s not in kept]
            drawn = self._draw_labels(taken)
            # on disk before it is paid, so that what was paid is there to be repeated
            together(drawn).map(lambda rows: self._keep(taken, rows))
            paid = self._pay(due, noises)
            self._receipts |= dict.fromkeys(due, paid)
            others = [s for s in fresh if s not in self._receipts]  # paid before a restart
            self._receipts |= dict.fromkeys(others, self._charges.paid(others))
            self._label_sigma |= {s: noise.applied for s, noise in taken}
            self._label_sigma |= {s: sigma for s, (_, sigma) in kept.items()}
            self._labels |= {s: row for (s, _), row in zip(taken, drawn, strict=True)}
            self._labels |= {s: Private(torch.tensor(row)) for s, (row, _) in kept.items()}
        self._sigma_now = _mean_sigma([self._label_sigma[sample] for sample in samples])
        told = together([self._labels[sample] for sample in samples]).map(torch.stack)
        receipts = (receipt for sample in samples for receipt in self._receipts.get(sample, ()))
        records = self._charges.records(samples)
        return self.door.released(told, records, dict.fromkeys(receipts))

    def _draw_labels(self, taken: Sequence[tuple[int, Noise]]) -> list[Private[torch.Tensor]]:
        """Return the noised label of each sample, of shape (classes - 1,)."""
        if not taken:
            return []
        assert self._corners is not None
        corners, clip_norm = self._corners, self.policy.clip_norm
        reach = label_reach(len(corners) - 1)  # the corners' norm over C: none is clipped
        noises = [noise for _, noise in taken]
        rows = self._samples.take([s for s, _ in taken]).map(
            lambda batch: corners[[sample.target for sample in batch]] * clip_norm
        )
        noised = rows.map(lambda r: self._add_noise(r, [1] * len(r), noises, clip_norm, reach))
        return [noised.map(itemgetter(place)) for place in range(len(taken))]

    def _keep(self, taken: Sequence[tuple[int, Noise]], rows: Sequence[torch.Tensor]) -> None:
        """Write noised labels to the client's own disk."""
        assert self._noised is not None
        pairs = zip(taken, rows, strict=True)
        self._noised.keep(
            {self._charges.record(s): (row.tolist(), n.applied) for (s, n), row in pairs}
        )

    def _pay_gradients(
        self, samples: Sequence[int], lengths: Sequence[int], width: int
    ) -> tuple[list[Noise], list[Receipt]]:
        """Charge one upload of each sample's gradient within the plan; return their noise."""
        token = self.policy.unit == "token"
        numbers = [width if token else length * width for length in lengths]
        noises = self._upload_noise.take(samples, numbers)
        return noises, self._pay(samples, noises)

    def _pay(self, samples: Sequence[int], noises: Sequence[Noise]) -> list[Receipt]:
        """Book one upload of each sample that the run's plan counts, on disk first."""
        receipts = list[Receipt]()
        for sigma, pairs in itertools.groupby(
            zip(samples, noises, strict=True), key=lambda pair: pair[1].charged
        ):
            paid = [sample for sample, _ in pairs]
            receipts += self._charges.charge(paid, sigma, planned=True)
        return receipts

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


def _mean_sigma(sigmas: Sequence[float]) -> float:
    """Return the noise of an upload as one: the root mean square over its samples."""
    return math.sqrt(sum(sigma**2 for sigma in sigmas) / len(sigmas))
