"""Noise on activations alone, to measure what it does."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clients.owner import Door, Leaving, OwnerTerms, Private, Reporting
from clients.release.base import PlainRelease
from fedlora.privacy.mechanisms import SystemNoise, release


class NoisyActivations(PlainRelease):
    """Releases gradients as they are, and activations clipped and noised, once for each sample.

    To measure what noise on activations alone does, also where it is too little to promise
    anything, which a client under a privacy policy refuses.

    Parameters
    ----------
    sigma, clip_norm
        As ``privacy.activation_sigma`` and ``privacy.activation_clip_norm``.
    """

    def __init__(self, sigma: float, clip_norm: float) -> None:
        door = Door(OwnerTerms())
        super().__init__(door, Reporting(door))
        self._sigma, self._clip_norm = sigma, clip_norm
        self._drawn: dict[int, torch.Tensor] = {}

    def activation(
        self, packed: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """See ``GradientRelease``."""
        return self.door.released(packed.map(lambda e: self._noised(e, lengths, samples)), (), ())

    def _noised(
        self, packed: torch.Tensor, lengths: Sequence[int], samples: Sequence[int]
    ) -> torch.Tensor:
        parts = zip(samples, torch.split(packed.detach(), list(lengths)), strict=True)
        for sample, part in parts:
            if sample not in self._drawn:
                self._drawn[sample] = release(
                    part,
                    [len(part)],
                    clip_norm=self._clip_norm,
                    sigma=self._sigma,
                    noise=SystemNoise(),
                ).values
        return torch.cat([self._drawn[sample] for sample in samples]).to(packed.dtype)
