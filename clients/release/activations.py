"""Forward activations under privacy: clipped, noised once, and repeated afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

import torch

from clients.owner import TEXT, Charges, Door, Leaving, Private, together
from fedlora.config import PrivacyPolicy
from fedlora.privacy.accounting import Charge
from fedlora.privacy.ledger import Receipt
from fedlora.privacy.mechanisms import KeyedNoise, KeyStreamNoise, NoiseKeys, release


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
        Where an upload is booked before it leaves. It is told which samples were paid before.
    keys
        What was drawn before a restart.
    plan
        Name under which the ledger counts them.
    """

    def __init__(
        self,
        door: Door,
        policy: PrivacyPolicy,
        noise: KeyStreamNoise,
        charges: Charges,
        keys: NoiseKeys | None = None,
        plan: str = "",
    ) -> None:
        self._door, self._policy, self._noise = door, policy, noise
        self._charges, self._plan = charges, plan
        self._keys = keys or NoiseKeys()
        self._names = _names(charges)
        self._noised: dict[int, Private[torch.Tensor]] = {}
        self._receipts: dict[int, Sequence[Receipt]] = {}
        charges.repeated = self._repeated()

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
            self._pay(fresh, Charge.gaussian(sigma))
            chosen = [places[sample] for sample in fresh]
            noises = [KeyedNoise(self._key(sample)) for sample in fresh]
            noised = packed.map(lambda e: self._release(e, lengths, chosen, sigma, noises))
            for place, sample in enumerate(fresh):
                self._noised[sample] = noised.map(itemgetter(place))
        rows = together([self._noised[sample] for sample in samples]).map(torch.cat)
        values = together([packed, rows]).map(lambda pair: pair[1].to(pair[0].dtype))
        receipts = (receipt for sample in samples for receipt in self._receipts[sample])
        records = self._charges.records(samples)
        return self._door.released(values, records, dict.fromkeys(receipts))

    def _pay(self, fresh: Sequence[int], charge: Charge) -> None:
        """Draw a key for each sample that has none, on disk, and pay for those that are not."""
        new = [sample for sample in fresh if self._keys.get(self._name(sample)) is None]
        drawn, seen = {}, Counter[int]()
        for sample in new:  # all of them are booked in one charge
            record = self._charges.record(sample)
            seen[record] += 1
            release = self._charges.counted(sample, self._plan) + seen[record]
            drawn[self._name(sample)] = self._noise.draw_key(), release
        self._keys.keep(drawn)
        before = [sample for sample in fresh if sample in self._charges.repeated]
        due = [sample for sample in fresh if sample not in self._charges.repeated]
        self._receipts |= dict.fromkeys(due, self._charges.charge(due, charge, self._plan))
        self._receipts |= dict.fromkeys(before, self._charges.paid(before, self._plan))

    def _repeated(self) -> set[int]:
        """Return the samples whose activation was paid before a restart.

        A key whose release the ledger has not counted was never used, as after a crash between the
        two: it is forgotten, or a later charge of its record would seem to have paid for it.
        """
        numbers = {name: number for number, name in enumerate(self._names)}
        repeated = set()
        for name in self._keys.names():
            number, key = numbers.get(name), self._keys.get(name)
            if number is None or key is None:
                continue
            if self._charges.counted(number, self._plan) >= key[1]:
                repeated.add(number)
            else:
                self._keys.drop([name])
        return repeated

    def _name(self, sample: int) -> str:
        return self._names[sample] if sample < len(self._names) else str(sample)

    def _key(self, sample: int) -> bytes:
        key = self._keys.get(self._name(sample))
        assert key is not None
        return key[0]

    def _release(
        self,
        packed: torch.Tensor,
        lengths: Sequence[int],
        chosen: Sequence[int],
        sigma: float,
        noises: Sequence[KeyStreamNoise],
    ) -> list[torch.Tensor]:
        """Clip and noise the rows of some samples; return those of each."""
        parts = torch.split(packed.detach(), list(lengths))
        return [
            release(
                parts[place],
                [lengths[place]],
                clip_norm=self._policy.activation_clip_norm,
                sigma=sigma,
                noise=noise,
                unit=self._policy.unit,
            ).values
            for place, noise in zip(chosen, noises, strict=True)
        ]


def _names(charges: Charges) -> list[str]:
    """Return a name for each sample that a restart finds again: its record, and which of it."""
    seen = Counter[int]()
    names = []
    for record in charges.all_records():
        names.append(f"{record}/{seen[record]}")
        seen[record] += 1
    return names
