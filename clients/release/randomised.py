"""Privacy by randomised labels: what leaves is exact, but computed from labels that may be wrong.

A label is drawn and paid once, and kept on the client's disk; see
``fedlora.privacy.mechanisms.randomised_response``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from clients.owner.door import Door, Leaving
from clients.owner.private import Private, PrivateSamples
from clients.owner.reporting import Reporting
from clients.release.activations import NoisyActivations
from clients.release.base import ExactGradient, T
from fedlora.config.privacy import PrivacyPolicy
from fedlora.errors import FedloraError
from fedlora.privacy.accounting.rdp import add_up, upload_cost
from fedlora.privacy.ledger.ledger import Ledger, Receipt
from fedlora.privacy.mechanisms.noise import NoiseSource
from fedlora.privacy.mechanisms.randomised_response import RandomisedLabels
from fedlora.privacy.plan import still_needed
from fedlora.tasks.base import Sample


class RandomisedRelease(ExactGradient):
    """Trains on randomised labels, and pays for each when it is drawn.

    Parameters
    ----------
    policy
        The run's policy.
    labels
        The client's randomised labels.
    door, reporting
        Where it leaves, and how held-out counts, which see the labels as they are, do.
    noise
        Source of the noise on activations.
    ledger, ids
        The budget on disk, and each sample's identifier in it, held-out samples last.
    """

    def __init__(
        self,
        policy: PrivacyPolicy,
        labels: RandomisedLabels,
        *,
        door: Door,
        reporting: Reporting,
        noise: NoiseSource,
        ledger: Ledger | None = None,
        ids: Sequence[int] = (),
    ) -> None:
        self.door, self.reporting = door, reporting
        self._policy = policy
        self._labels = labels
        self._ledger, self._ids = ledger, ids
        self._activations = NoisyActivations(door, policy, noise, self._charge, self._id)
        self._rho: dict[int, float] = {}
        self._records: list[int] = []
        self._receipts: list[Receipt] = []

    def __call__(
        self, gradient: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """See ``GradientRelease``; computed from labels that were paid for."""
        del lengths
        return self.door.released(gradient, map(self._id, samples), self._receipts)

    def exact(self, value: Private[T]) -> Leaving[T] | None:
        """See ``GradientRelease``; computed from labels that were paid for."""
        return self.door.released(value, self._records, self._receipts)

    def training(self, samples: PrivateSamples) -> PrivateSamples:
        """See ``GradientRelease``: the samples with randomised labels.

        Raises
        ------
        FedloraError
            When a target is no class, labels cannot be written or were drawn otherwise, or the
            owner does not allow them.
        """
        samples.all.map(_check_classes)
        self._records = [self._id(number) for number in range(len(samples))]
        book, epsilon = self._ledger, self._labels.epsilon
        if book is not None:
            new = self._labels.missing(self._records)
            due = [
                i
                for i in dict.fromkeys(self._records)
                if i in new or book.label_epsilon_of(i) < epsilon
            ]
            if self._policy.activation_sigma is not None:  # or the run would be left half way
                activations = still_needed(self._policy, self._ids, 0, lambda _: 0.0)
                book.check_plan(activations, dict.fromkeys(due, epsilon))
            # paid before they exist: a crash can only make the ledger count too much
            book.charge_labels(due, epsilon)
            self._receipts = [book.paid_labels(self._records, epsilon)]
        return samples.map(self._drawn)

    def _drawn(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return the samples with the labels that were drawn for them."""
        targets = {
            record: sample.target
            for record, sample in zip(self._records, samples, strict=True)
            if isinstance(sample.target, int)
        }
        drawn = self._labels.draw(targets)
        return [
            replace(sample, target=drawn[record])
            for record, sample in zip(self._records, samples, strict=True)
        ]

    def activation(
        self, packed: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """See ``GradientRelease``."""
        return self._activations(packed, lengths, samples)

    def spent(self) -> Mapping[str, float]:
        """See ``GradientRelease``; where there is a ledger, over all that it has booked."""
        if self._ledger is not None:
            return {"rho": self._ledger.rho, "label_epsilon": self._ledger.label_epsilon}
        rho = max(self._rho.values(), default=0.0)
        return {"rho": rho, "label_epsilon": self._labels.epsilon}

    def planned(self) -> Mapping[str, float]:
        """See ``GradientRelease``."""
        rest = still_needed(self._policy, self._ids or [0], 0, lambda _: 0.0)
        if self._ledger is None:
            return {"rho_planned": max(rest.values()), "label_epsilon": self._labels.epsilon}
        rho = self._ledger.planned(rest)
        return {"rho_planned": rho, "label_epsilon": self._ledger.label_epsilon}

    def close(self) -> None:
        """See ``GradientRelease``."""
        if self._ledger is not None:
            self._ledger.close()

    def _id(self, sample: int) -> int:
        return self._ids[sample] if self._ids else sample

    def _charge(self, samples: Sequence[int], sigma: float) -> list[Receipt]:
        """Book a noised upload of each sample's activation, on disk first."""
        receipts = list[Receipt]()
        if self._ledger is not None:
            receipts.append(self._ledger.charge([self._ids[s] for s in samples], sigma))
        for sample in samples:
            self._rho[sample] = add_up(self._rho.get(sample, 0.0), upload_cost(sigma))
        return receipts


def _check_classes(samples: Sequence[Sample]) -> None:
    """Refuse samples that have no class, as those of a language model."""
    if not all(isinstance(sample.target, int) for sample in samples):
        raise FedloraError(
            "privacy.release is labels, but this task's samples have no class; set privacy.release "
            "to full"
        )
