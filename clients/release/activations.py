"""Forward activations under privacy: clipped, noised once, and repeated afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch

from clients.owner import TEXT, Charges, Door, Leaving, Private, together
from fedlora.config import PrivacyPolicy
from fedlora.privacy.accounting import Charge
from fedlora.privacy.ledger import Receipt
from fedlora.privacy.mechanisms import NoiseSource, release


class NoisyActivations:
    """What leaves of the activations: as they are, or where the policy says so with noise.

    Parameters
    ----------
    door
        Where they leave.
    policy
        The run's policy.
    noise
        Source of the noise.
    charges
        Where an upload is booked before it leaves.
    """

    def __init__(
        self,
        door: Door,
        policy: PrivacyPolicy,
        noise: NoiseSource,
        charges: Charges,
    ) -> None:
        self._door, self._policy, self._noise = door, policy, noise
        self._charges = charges
        self._noised: dict[int, Private[torch.Tensor]] = {}
        self._receipts: dict[int, Sequence[Receipt]] = {}

    def __call__(
        self, packed: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """Return the activation, noised where the policy says so; see ``GradientRelease``."""
        sigma = self._policy.activation_sigma
        if sigma is None:
            return self._door.allowed(packed, TEXT)
        places = {sample: place for place, sample in enumerate(samples)}
        fresh = [sample for sample in places if sample not in self._noised]
        if fresh:
            self._receipts |= dict.fromkeys(
                fresh, self._charges.charge(fresh, Charge.gaussian(sigma))
            )
            chosen = [places[sample] for sample in fresh]
            noised = packed.map(lambda e: self._release(e, lengths, chosen, sigma))
            for place, sample in enumerate(fresh):
                self._noised[sample] = noised.map(itemgetter(place))
        rows = together([self._noised[sample] for sample in samples]).map(torch.cat)
        values = together([packed, rows]).map(lambda pair: pair[1].to(pair[0].dtype))
        receipts = (receipt for sample in samples for receipt in self._receipts[sample])
        records = self._charges.records(samples)
        return self._door.released(values, records, dict.fromkeys(receipts))

    def _release(
        self, packed: torch.Tensor, lengths: Sequence[int], chosen: Sequence[int], sigma: float
    ) -> tuple[torch.Tensor, ...]:
        """Clip and noise the rows of some samples; return those of each."""
        parts = torch.split(packed.detach(), list(lengths))
        sizes = [lengths[place] for place in chosen]
        noised = release(
            torch.cat([parts[place] for place in chosen]),
            sizes,
            clip_norm=self._policy.activation_clip_norm,
            sigma=sigma,
            noise=self._noise,
            unit=self._policy.unit,
        ).values
        return torch.split(noised, sizes)
