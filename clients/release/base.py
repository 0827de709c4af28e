"""What of a batch may leave the client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from clients.owner import DATA, TEXT, Door, Leaving, Private, PrivateSamples, Reporting

T = TypeVar("T")


class GradientRelease(ABC):
    """Turns the gradient at the cut into what is uploaded.

    Attributes
    ----------
    door
        Where it leaves.
    reporting
        How held-out counts leave.
    sample_mean
        Whether each sample's loss is to be its token mean, so that its gradient can be clipped.
    """

    sample_mean: bool
    door: Door
    reporting: Reporting

    @abstractmethod
    def __call__(
        self, gradient: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """Return what leaves.

        Parameters
        ----------
        gradient
            Packed gradient, shape (sum of lengths, width).
        lengths
            Rows of ``gradient`` that belong to each sample.
        samples
            Numbers of the samples in the client's data.
        """

    @abstractmethod
    def activation(
        self, packed: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """Return what leaves of an activation, packed like the gradient.

        Held-out samples are numbered after the training samples.
        """

    @abstractmethod
    def exact(self, value: Private[T]) -> Leaving[T] | None:
        """Return what else is computed from the training samples' labels: losses, a trained head.

        None where it has to stay.
        """

    @abstractmethod
    def spent(self) -> Mapping[str, float]:
        """Return what the server is told with each upload and at the end.

        ``rho``, and where gradients are noised ``sigma``, the least noise of any upload, and
        ``sigma_now``, that of the present one; ``label_epsilon`` where labels were randomised.
        """

    @abstractmethod
    def planned(self) -> Mapping[str, float]:
        """Return what the server is told on joining: the most that the run can come to.

        ``rho_planned``, the largest rho of any sample when all that the run may still upload is
        spent, and ``label_epsilon`` as in ``spent``.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what is held on disk."""

    @abstractmethod
    def begin_phase(self) -> None:
        """Forget what was learnt of the channel, as the rounds begin anew; not what was spent."""

    @abstractmethod
    def begin_round(self, channel: Mapping[str, Any] | None) -> None:
        """Take note of the client's own channel in a round (``ChannelState`` as a table)."""

    @abstractmethod
    def begin_step(self, rank: object, samples: Sequence[int]) -> None:
        """Prepare for what leaves of a step.

        Parameters
        ----------
        rank
            Mean rank that the server says the step trains, if it says any.
        samples
            Numbers of its samples.
        """

    @abstractmethod
    def training(self, samples: PrivateSamples) -> PrivateSamples:
        """Return the samples to train on."""


class ExactGradient(GradientRelease):
    """The gradient leaves as it is, and so may all that follows from it."""

    sample_mean = False

    def begin_phase(self) -> None:
        """See ``GradientRelease``."""

    def begin_round(self, channel: Mapping[str, Any] | None) -> None:
        """See ``GradientRelease``."""

    def begin_step(self, rank: object, samples: Sequence[int]) -> None:
        """See ``GradientRelease``."""


class PlainRelease(ExactGradient):
    """No protection, which the owner of a device allows by setting no limit.

    Parameters
    ----------
    door
        Where it leaves.
    reporting
        How held-out counts leave.
    """

    def __init__(self, door: Door, reporting: Reporting) -> None:
        self.door, self.reporting = door, reporting

    def __call__(
        self, gradient: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """See ``GradientRelease``."""
        del lengths, samples
        return self.door.allowed(gradient, DATA)

    def activation(
        self, packed: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """See ``GradientRelease``."""
        del lengths, samples
        return self.door.allowed(packed, TEXT)

    def exact(self, value: Private[T]) -> Leaving[T] | None:
        """See ``GradientRelease``."""
        return self.door.allowed(value, DATA)

    def spent(self) -> Mapping[str, float]:
        """See ``GradientRelease``."""
        return {}

    def planned(self) -> Mapping[str, float]:
        """See ``GradientRelease``."""
        return {}

    def close(self) -> None:
        """See ``GradientRelease``."""

    def training(self, samples: PrivateSamples) -> PrivateSamples:
        """See ``GradientRelease``."""
        return samples
