"""A noised message about each label: drawn and paid once, kept on disk, and repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch

from clients.owner import Leaving, Private, PrivateSamples, together
from clients.release.private import PrivateRelease, mean_sigma
from clients.release.upload_noise import Noise
from fedlora.privacy.ledger import Receipt
from fedlora.privacy.mechanisms import Logits, NoisedLabels


class MessageRelease(PrivateRelease):
    """Releases a message about a sample's label in place of its gradients.

    Parameters
    ----------
    mechanism, arguments
        See ``PrivateRelease``.
    samples
        Training samples.
    classes
        Number of classes.
    noised
        Messages that were noised before a restart.
    """

    def __init__(
        self,
        mechanism: Logits,
        *arguments: Any,
        samples: PrivateSamples,
        classes: int,
        noised: NoisedLabels | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(mechanism, *arguments, **keywords)
        self._samples = samples
        self._noised = noised or NoisedLabels(None, {})
        # a record of none of the classes is released as the corners' middle
        messages = mechanism.messages(classes)
        self._messages = torch.cat([messages, torch.zeros_like(messages[:1])])
        self._labels: dict[int, Private[torch.Tensor]] = {}
        self._sigmas: dict[int, float] = {}
        self._receipts: dict[int, Sequence[Receipt]] = {}

    def __call__(
        self, gradient: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """Return each sample's noised message, which is drawn and paid when it first leaves.

        Raises
        ------
        BudgetSpentError
            When the plan or the owner's limit does not pay for it; nothing leaves.
        """
        del gradient, lengths
        fresh = [s for s in dict.fromkeys(samples) if s not in self._labels]
        if fresh:
            known = {s: self._noised.get(self._charges.record(s)) for s in fresh}
            kept = {s: found for s, found in known.items() if found}
            counted = self._upload_noise.counted
            due = [s for s in fresh if s not in kept or counted(s) < kept[s][2]]
            releases = {s: counted(s) + 1 for s in due}
            noises = self._upload_noise.take(due, [self._messages.shape[1]] * len(due))
            taken = [(s, noise) for s, noise in zip(due, noises, strict=True) if s not in kept]
            drawn = self._draw(taken)
            # on disk before it is paid, so that what was paid is there to be repeated
            together(drawn).map(lambda rows: self._keep(taken, rows, releases))
            paid = self._pay(due, noises)
            self._receipts |= dict.fromkeys(due, paid)
            others = [s for s in fresh if s not in self._receipts]  # paid before a restart
            self._receipts |= dict.fromkeys(others, self._charges.paid(others, self._charges.plan))
            self._sigmas |= {s: noise.applied for s, noise in taken}
            self._sigmas |= {s: sigma for s, (_, sigma, _) in kept.items()}
            self._labels |= {s: row for (s, _), row in zip(taken, drawn, strict=True)}
            self._labels |= {s: Private(torch.tensor(row)) for s, (row, _, _) in kept.items()}
        self._sigma_now = mean_sigma([self._sigmas[sample] for sample in samples])
        told = together([self._labels[sample] for sample in samples]).map(torch.stack)
        receipts = (receipt for sample in samples for receipt in self._receipts.get(sample, ()))
        records = self._charges.records(samples)
        return self.door.released(told, records, dict.fromkeys(receipts))

    def _draw(self, taken: Sequence[tuple[int, Noise]]) -> list[Private[torch.Tensor]]:
        """Return the noised message of each sample, of shape (numbers,)."""
        if not taken:
            return []
        messages, noises = self._messages, [noise for _, noise in taken]
        rows = self._samples.take([s for s, _ in taken]).map(
            lambda batch: messages[[sample.target for sample in batch]]
        )
        noised = rows.map(lambda r: self._add_noise(r, [1] * len(r), noises))
        return [noised.map(itemgetter(place)) for place in range(len(taken))]

    def _keep(
        self,
        taken: Sequence[tuple[int, Noise]],
        rows: Sequence[torch.Tensor],
        releases: Mapping[int, int],
    ) -> None:
        """Write noised messages to the client's own disk, and which release pays for each."""
        self._noised.keep(
            {
                self._charges.record(sample): (row.tolist(), noise.applied, releases[sample])
                for (sample, noise), row in zip(taken, rows, strict=True)
            }
        )
