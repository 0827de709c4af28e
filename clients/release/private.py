"""A client's privacy where noise is added: what is charged, noised and sent, at each upload."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
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
    width_of,
)
from clients.release.activations import NoisyActivations
from clients.release.base import GradientRelease, T
from clients.release.upload_noise import Noise, UploadNoise
from fedlora.privacy.ledger import Receipt
from fedlora.privacy.mechanisms import Mechanism, ReleasePlan, asked, numbers_of


class PrivateRelease(GradientRelease):
    """Clips, charges and noises everything that depends on a label, as a mechanism says.

    Parameters
    ----------
    mechanism
        What leaves, with how much noise, and what it costs.
    plan
        Uploads of a sample that the run is calibrated for, and the noise on each.
    door, reporting
        Where it leaves, and how held-out counts do.
    activations
        What leaves of the activations.
    upload_noise
        Chooses the noise on what is uploaded for gradients.
    charges
        Where its samples' uploads are booked.
    """

    sample_mean = True

    def __init__(
        self,
        mechanism: Mechanism,
        plan: ReleasePlan,
        *,
        door: Door,
        reporting: Reporting,
        activations: NoisyActivations,
        upload_noise: UploadNoise,
        charges: Charges,
    ) -> None:
        self.mechanism, self.plan = mechanism, plan
        self.door, self.reporting = door, reporting
        self._upload_noise = upload_noise
        self._charges = charges
        self._sigma_now = plan.sigma
        self._activations = activations

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
        rest = self._charges.needed(self.mechanism.policy, self._upload_noise.needed)
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

    def _pay(self, samples: Sequence[int], noises: Sequence[Noise]) -> list[Receipt]:
        """Book one upload of each sample that the run's plan counts, on disk first."""
        receipts = list[Receipt]()
        for sigma, pairs in itertools.groupby(
            zip(samples, noises, strict=True), key=lambda pair: pair[1].charged
        ):
            paid = [sample for sample, _ in pairs]
            charge = self._upload_noise.charge(sigma)
            receipts += self._charges.charge(paid, charge, self._charges.plan)
        return receipts

    def _add_noise(
        self, values: torch.Tensor, lengths: Sequence[int], noises: Sequence[Noise]
    ) -> torch.Tensor:
        """Clip and add each sample's noise, in runs of equal noise."""
        released, rows = [], list(torch.split(values, list(lengths)))
        clip_norm = self.mechanism.policy.clip_norm
        for noise, run in itertools.groupby(range(len(rows)), key=noises.__getitem__):
            places = list(run)
            part = torch.cat([rows[i] for i in places])
            sizes = [lengths[i] for i in places]
            source = self._upload_noise.source(noise, clip_norm)
            given = (part, sizes, noise.applied, source)
            released.append(asked(self.mechanism, "noised", part.shape, *given))
        return torch.cat(released)


class UploadRelease(PrivateRelease):
    """Releases what a mechanism makes of the gradient at the cut.

    Parameters
    ----------
    arguments
        See ``PrivateRelease``.
    head
        The client's head, whose weight is public where the mechanism needs it.
    """

    def __init__(self, *arguments: Any, head: nn.Module, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._head = head

    def __call__(
        self, gradient: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """Charge the budget, then return the noised release.

        Raises
        ------
        BudgetSpentError
            When the plan or the owner's limit does not pay for it; nothing leaves.
        """
        weight = next(self._head.parameters()) if self.mechanism.needs_head else None
        classes = 0 if weight is None else len(weight)
        width = numbers_of(self.mechanism, classes, width_of(gradient))
        # how many numbers of each are clipped together
        token = self.mechanism.policy.unit == "token"
        numbers = [width if token else length * width for length in lengths]
        noises = self._upload_noise.take(samples, numbers)
        receipts = self._pay(samples, noises)
        self._sigma_now = mean_sigma([noise.applied for noise in noises])

        def release(g: torch.Tensor) -> torch.Tensor:
            shape = (len(g), width)
            values = asked(self.mechanism, "values", shape, g, weight, finite=False)
            return self._add_noise(values, lengths, noises)

        noised = gradient.map(release)
        return self.door.released(noised, self._charges.records(samples), receipts)


def mean_sigma(sigmas: Sequence[float]) -> float:
    """Return the noise of an upload as one: the root mean square over its samples."""
    return math.sqrt(sum(sigma**2 for sigma in sigmas) / len(sigmas))
