"""What left a device with noise, counted where it leaves and not where it is charged."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from clients.owner import Leaving, Reporting
from clients.release.activations import NoisyActivations
from clients.release.messages import MessageRelease
from clients.release.private import PrivateRelease, UploadRelease
from simulations.audit.device.world import World


@dataclass
class Left:
    """Gaussian releases of each record, by its identifier in the ledger.

    Attributes
    ----------
    sigmas
        Noise over the clipping norm of each; what leaves again as it was counts once.
    """

    sigmas: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    _seen: set[tuple[int, bytes]] = field(default_factory=set)

    def note(self, record: int, sigma: float, told: torch.Tensor | None = None) -> None:
        """Count a release; one whose bytes have left before of this record does not count."""
        if told is not None:
            key = (record, told.detach().float().contiguous().numpy().tobytes())
            if key in self._seen:
                return
            self._seen.add(key)
        self.sigmas[record].append(sigma)


def underpaid(world: World, left: Left) -> str:
    """Return which record has cost more than its ledger says; nothing where all are paid.

    A release at noise s over the clipping norm has the Rényi divergence 2 alpha / s^2 between
    neighbours by replacement.
    """
    with world.spent() as ledger:
        booked = ledger.spent()
    for record, sigmas in left.sigmas.items():
        cost = sum(2 / sigma**2 for sigma in sigmas)
        if booked.get(record, 0.0) < cost * (1 - 1e-9):
            return (
                f"a record's {len(sigmas)} releases cost rho {cost:.6g}, and its ledger says "
                f"{booked.get(record, 0.0):.6g}"
            )
    return ""


@contextlib.contextmanager
def leaving(left: Left) -> Iterator[None]:
    """Count what the mechanisms of a device let out."""
    activation, report = NoisyActivations.__call__, Reporting.tell

    def noting(kind: type[PrivateRelease]) -> Any:
        gradient = kind.__call__

        def noted_gradient(
            self: PrivateRelease, values: Any, lengths: Sequence[int], samples: Sequence[int]
        ) -> Leaving[torch.Tensor]:
            told = gradient(self, values, lengths, samples)
            once = self.mechanism.repeats
            sizes = [1] * len(samples) if once else list(lengths)
            for sample, rows in zip(samples, torch.split(told.value, sizes), strict=True):
                left.note(self._charges.record(sample), self._sigma_now, rows if once else None)
            return told

        return mock.patch.object(kind, "__call__", noted_gradient)

    def noted_activation(
        self: NoisyActivations, packed: Any, lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        told = activation(self, packed, lengths, samples)
        sigma = self._policy.activation_sigma
        for sample, rows in zip(samples, torch.split(told.value, list(lengths)), strict=True):
            if sigma is not None:
                left.note(self._charges.record(sample), sigma, rows)
        return told

    def noted_report(self: Reporting, parts: Any, classes: int) -> Leaving[Any]:
        told = report(self, parts, classes)
        for record in self.records if told.value is not None and self.sigma is not None else ():
            left.note(record, self.sigma or 0.0)
        return told

    with (
        noting(UploadRelease),
        noting(MessageRelease),
        mock.patch.object(NoisyActivations, "__call__", noted_activation),
        mock.patch.object(Reporting, "tell", noted_report),
    ):
        yield
