"""How held-out counts leave: not at all, with noise that is paid for, or as they are.

The server chooses what the rows are classified by (the representation, and a shared head), so exact
counts over a few evaluations tell every label: evaluation is a release. Under the owner's
``privacy-report = "true"`` an evaluation releases two sums over all held-out records, of those that
were right and of the clipped losses, by the Gaussian mechanism on their sum (Abadi et al. 2016,
Section 3.1). A record adds

    u = (right, min(loss, L) / L) / sqrt(2),   ||u|| <= 1,   L = 2 ln(classes),

so that the convention of ``fedlora.config.privacy`` holds with a clipping norm of 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from clients.owner.door import Door, Leaving
from clients.owner.private import Private, together
from clients.owner.terms import DATA
from fedlora.privacy.ledger.ledger import Ledger, Receipt
from fedlora.privacy.mechanisms.gaussian import release_sum
from fedlora.privacy.mechanisms.noise import NoiseSource
from fedlora.tasks.metrics import NoisedCounts

Told = Mapping[str, Any] | None


@dataclass
class Reporting:
    """What the owner lets the server know of held-out records; by default everything.

    Attributes
    ----------
    door
        Where counts leave.
    evaluates
        Whether held-out records are looked at.
    limit
        Evaluations that are left in this run; None for no limit.
    sigma
        Noise on the sums over their clipping norm; None tells counts as they are.
    key
        Key of the owner's that allows exact counts.
    noise, ledger, records, plan
        Source of the noise, the budget on disk, the held-out records in it, and the name under
        which it counts the run's evaluations.
    """

    door: Door
    evaluates: bool = True
    limit: int | None = None
    sigma: float | None = None
    key: str = DATA
    noise: NoiseSource | None = None
    ledger: Ledger | None = None
    records: Sequence[int] = ()
    plan: str = ""
    _receipts: list[Receipt] = field(default_factory=list)

    def begin(self) -> bool:
        """Pay for an evaluation before anything of it leaves; return whether there is one.

        Raises
        ------
        BudgetSpentError
            When the owner's limit does not pay for it.
        """
        if not self.evaluates or (self.limit is not None and self.limit < 1):
            return False
        if self.limit is not None:
            self.limit -= 1
        self._receipts = []
        if self.ledger is not None and self.sigma is not None:
            self._receipts = [self.ledger.charge(self.records, self.sigma, self.plan)]
        elif self.ledger is not None and self.limit is not None:
            self.ledger.note(self.records, self.plan)
        return True

    def tell(self, parts: Sequence[Private[list[Any]]], classes: int) -> Leaving[Any]:
        """Return the counts of an evaluation as they may leave.

        Parameters
        ----------
        parts
            Counts of each batch; where there is noise, those of its records one by one.
        classes
            Number of classes.
        """
        if not parts:
            return self.door.public(None)
        counts = together(parts).map(lambda batches: list(chain.from_iterable(batches)))
        if self.sigma is None:
            return self.door.allowed(counts.map(_added), self.key)
        told = counts.map(lambda own: self._noised(own, classes))
        return self.door.released(told, self.records, self._receipts)

    def _noised(self, records: Sequence[Any], classes: int) -> Told:
        assert self.sigma is not None and self.noise is not None
        largest = 2 * math.log(max(2, classes))
        rows = torch.tensor(
            [[c.accuracy, min(max(c.loss, 0.0), largest) / largest] for c in records],
            dtype=torch.float64,
        ).nan_to_num(1.0)
        sums = release_sum(
            rows / math.sqrt(2), clip_norm=1.0, sigma=self.sigma, noise=self.noise
        ) * math.sqrt(2)
        right, loss = sums.tolist()
        return NoisedCounts(len(records), right, loss * largest).to_dict()


def _added(counts: Sequence[Any]) -> Told:
    total = counts[0]
    for part in counts[1:]:
        total = total + part
    table: Told = total.to_dict()
    return table
