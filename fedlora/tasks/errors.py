"""Counts of a regression: squared errors beside the energy of what was to be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fedlora.errors import FedloraError, ProtocolError
from fedlora.tasks.metrics import Metric, read_count, read_loss, read_table

_FIELDS = ("loss", "error", "energy", "ratios", "values", "samples")


@dataclass(frozen=True)
class ErrorCounts:
    """Sums over samples, from which two kinds of NMSE follow.

    Attributes
    ----------
    loss
        Sum of the samples' losses, as they were trained.
    error, energy
        Sums of the squared errors and of the squared targets, over all numbers.
    ratios
        Sum over samples of a sample's squared error over its energy.
    values, samples
        How many numbers and samples there are.
    """

    loss: float
    error: float
    energy: float
    ratios: float
    values: int
    samples: int

    @classmethod
    def of(cls, predicted: torch.Tensor, wanted: torch.Tensor, loss: float) -> ErrorCounts:
        """Count predictions.

        Parameters
        ----------
        predicted, wanted
            Real numbers of shape (samples, ...).
        loss
            Sum of the samples' losses.

        Raises
        ------
        FedloraError
            When a target is 0 throughout, of which there is no relative error.
        """
        error = (predicted - wanted).double().square().flatten(1).sum(1)
        energy = wanted.double().square().flatten(1).sum(1)
        if not bool((energy > 0).all()):
            raise FedloraError(
                "a held-out target is 0 throughout, so that NMSE divides by 0; leave such records "
                "out, or add an offset"
            )
        return cls(
            loss,
            float(error.sum()),
            float(energy.sum()),
            float((error / energy).sum()),
            wanted.numel(),
            len(wanted),
        )

    @classmethod
    def from_dict(cls, value: Any) -> ErrorCounts:
        """Read what ``to_dict`` wrote on the other side of a wire; raises ``ProtocolError``."""
        table = read_table(value, *_FIELDS)
        values, samples = (read_count(table[name], name) for name in _FIELDS[-2:])
        if samples > values:
            raise ProtocolError(f"{samples} samples cannot come from {values} numbers")
        sums = {name: read_loss(table[name], samples) for name in _FIELDS[:-2]}
        return cls(**sums, values=values, samples=samples)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {name: getattr(self, name) for name in _FIELDS}

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        """Return the counts of both sets of samples."""
        return ErrorCounts(*(getattr(self, name) + getattr(other, name) for name in _FIELDS))

    def metrics(self) -> tuple[Metric, ...]:
        """Return NMSE as a ratio of sums (the task's metric), then others.

        ``nmse_mean`` is the mean of the samples' own ratios, ``rmse`` in units of the targets.

        Raises
        ------
        FedloraError
            When there is no sample.
        """
        if not self.samples or not self.energy:
            raise FedloraError(
                "nothing was evaluated, so there is no metric; raise data.holdout or set data.test"
            )
        return (
            Metric("nmse", self.error / self.energy, False),
            Metric("loss", self.loss / self.samples, False),
            Metric("nmse_mean", self.ratios / self.samples, False),
            Metric("rmse", (self.error / self.values) ** 0.5, False),
        )
