"""Privacy by randomised labels: what leaves is exact, but computed from labels that may be wrong.

A label is drawn and paid once, and kept on the client's disk; see
``fedlora.privacy.mechanisms.randomised_response``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from clients.owner import Charges, Door, Leaving, Private, PrivateSamples, Reporting
from clients.release.activations import NoisyActivations
from clients.release.base import ExactGradient, T
from fedlora.errors import FedloraError
from fedlora.privacy.ledger import Receipt
from fedlora.privacy.mechanisms import Labels, RandomisedLabels
from fedlora.tasks import Sample


class RandomisedRelease(ExactGradient):
    """Trains on randomised labels, and pays for each when it is drawn.

    Parameters
    ----------
    mechanism
        How a label is drawn, and what that costs.
    labels
        The client's randomised labels.
    door, reporting
        Where it leaves, and how held-out counts, which see the labels as they are, do.
    activations
        What leaves of the activations.
    charges
        Where labels and activations are booked.
    """

    def __init__(
        self,
        mechanism: Labels,
        labels: RandomisedLabels,
        *,
        door: Door,
        reporting: Reporting,
        activations: NoisyActivations,
        charges: Charges,
    ) -> None:
        self.door, self.reporting = door, reporting
        self._policy = mechanism.policy
        self._cost = mechanism.charge()
        self._labels = labels
        self._charges = charges
        self._activations = activations
        self._records: list[int] = []
        self._receipts: list[Receipt] = []

    def __call__(
        self, gradient: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """See ``GradientRelease``; computed from labels that were paid for."""
        del lengths
        return self.door.released(gradient, self._charges.records(samples), self._receipts)

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
        self._records = self._charges.records(range(len(samples)))
        book, epsilon = self._charges.ledger, self._cost.epsilon
        if book is not None:
            new = self._labels.missing(self._records)
            due = [
                i
                for i in dict.fromkeys(self._records)
                if i in new or book.label_epsilon_of(i) < epsilon
            ]
            if self._policy.activation_sigma is not None:  # or the run would be left half way
                book.check_plan(self._charges.needed(self._policy), dict.fromkeys(due, epsilon))
            # paid before they exist: a crash can only make the ledger count too much
            book.charge(due, self._cost)
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
        """See ``GradientRelease``."""
        return {"rho": self._charges.rho, "label_epsilon": self._label_epsilon}

    def planned(self) -> Mapping[str, float]:
        """See ``GradientRelease``."""
        rho = self._charges.planned(self._charges.needed(self._policy))
        return {"rho_planned": rho, "label_epsilon": self._label_epsilon}

    def close(self) -> None:
        """See ``GradientRelease``."""
        self._charges.close()

    @property
    def _label_epsilon(self) -> float:
        """What labels have cost; without a ledger, what they cost."""
        if self._charges.ledger is None:
            return self._cost.epsilon
        return self._charges.label_epsilon


def _check_classes(samples: Sequence[Sample]) -> None:
    """Refuse samples that have no class, as those of a language model."""
    if not all(isinstance(sample.target, int) for sample in samples):
        raise FedloraError(
            "privacy.release is labels, but this task's samples have no class; set privacy.release "
            "to full"
        )
