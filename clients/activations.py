"""Forward activations under privacy: clipped, noised once, and repeated afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fedlora.privacy.mechanism import release
from fedlora.privacy.noise import NoiseSource
from fedlora.privacy.policy import PrivacyPolicy


class NoisyActivations:
    """What leaves of the activations, where the policy has noise on them.

    Parameters
    ----------
    policy
        The run's policy.
    noise
        Source of the noise.
    charge
        Books one upload of each sample at a noise, before it leaves.
    """

    def __init__(
        self,
        policy: PrivacyPolicy,
        noise: NoiseSource,
        charge: Callable[[Sequence[int], float], None],
    ) -> None:
        self._policy, self._noise, self._charge = policy, noise, charge
        self._noised: dict[int, torch.Tensor] = {}

    def __call__(
        self, packed: torch.Tensor, lengths: Sequence[int], samples: Sequence[int]
    ) -> torch.Tensor:
        """Return the activation, noised where the policy says so; see ``GradientRelease``."""
        sigma = self._policy.activation_sigma
        if sigma is None:
            return packed
        parts = dict(zip(samples, torch.split(packed.detach(), list(lengths)), strict=True))
        fresh = [sample for sample in parts if sample not in self._noised]
        if fresh:
            self._charge(fresh, sigma)
            sizes = [len(parts[sample]) for sample in fresh]
            noised = release(
                torch.cat([parts[sample] for sample in fresh]),
                sizes,
                clip_norm=self._policy.activation_clip_norm,
                sigma=sigma,
                noise=self._noise,
                unit=self._policy.unit,
            ).values
            self._noised |= zip(fresh, torch.split(noised, sizes), strict=True)
        return torch.cat([self._noised[sample] for sample in samples]).to(packed.dtype)
