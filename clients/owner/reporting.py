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

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch

from clients.owner.charges import Charges
from clients.owner.door import Door, Leaving
from clients.owner.private import Private, together
from clients.owner.terms import DATA, REPORT, SCORES, OwnerTerms
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import gradient_sigma
from fedlora.privacy.ledger import Receipt
from fedlora.privacy.mechanisms import NoiseSource, release_sum
from fedlora.tasks import NoisedCounts, task_class

log = logging.getLogger("fedlora.edge")

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
    noise
        Source of the noise.
    charges, records
        The client's budget, and the held-out records in it.
    """

    door: Door
    evaluates: bool = True
    limit: int | None = None
    sigma: float | None = None
    key: str = DATA
    noise: NoiseSource | None = None
    charges: Charges | None = None
    records: Sequence[int] = ()
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
        bounded = self.limit is not None or self.sigma is not None
        if self.charges is not None and bounded:
            self._receipts = self.charges.evaluate(self.sigma)
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

    def tell_scores(self, parts: Sequence[Private[list[Any]]]) -> Leaving[Any]:
        """Return histograms of scores as they may leave: exactly, or not at all."""
        if not parts or self.sigma is not None:
            return self.door.public(None)
        scores = together(parts).map(lambda batches: list(chain.from_iterable(batches)))
        return self.door.allowed(scores.map(_added), SCORES)

    def tell_texts(self, parts: Sequence[Private[list[Any]]]) -> Leaving[Any]:
        """Return the scores of written texts as they may leave: exactly, or not at all."""
        if self.sigma is not None:
            return self.door.public(None)
        counts = together(parts).map(lambda steps: list(chain.from_iterable(steps)))
        return self.door.allowed(counts.map(lambda own: _added(own) if own else None), self.key)

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


def plan_reporting(
    scenario: Scenario,
    terms: OwnerTerms,
    door: Door,
    charges: Charges,
    held_out: int,
    noise: NoiseSource,
) -> Reporting:
    """Return how held-out counts leave in a run with privacy: as the owner says, and pays for.

    Parameters
    ----------
    scenario, terms
        What is asked for, and what the owner allows.
    door, charges
        Where counts leave, and where they are booked.
    held_out
        Number of held-out records.
    noise
        Source of the noise.
    """
    if not scenario.evaluate.report or terms.reports == "false" or not held_out:
        return Reporting(door, evaluates=False)
    done = charges.evaluations()
    limit = None if terms.simulated else max(0, terms.report_limit - done)
    if terms.reports == "unprotected":
        key = DATA if terms.simulated else REPORT
        return Reporting(door, limit=limit, key=key, charges=charges)
    if not task_class(scenario.task.kind).labelled:
        log.warning("no held-out counts are told: their noise exists for classification alone")
        return Reporting(door, evaluates=False)
    if len(set(charges.held_out)) < len(charges.held_out):
        log.warning(
            "no held-out counts are told: a record gives several samples, and their noise covers "
            "one of each"
        )
        return Reporting(door, evaluates=False)
    evaluations = min(_evaluations(scenario), terms.report_limit)
    try:
        policy = replace(scenario.privacy, uploads=0)
        sigma = gradient_sigma(policy, evaluations, activation_uploads=1)
        charges.check_evaluations(policy, sigma, max(0, evaluations - done))
    except FedloraError as error:
        log.warning("no held-out counts are told: %s", error)
        return Reporting(door, evaluates=False)
    return Reporting(
        door,
        limit=max(0, evaluations - done),
        sigma=sigma,
        noise=noise,
        charges=charges,
        records=charges.held_out or range(held_out),
    )


def _evaluations(scenario: Scenario) -> int:
    """Return how many evaluations a scenario comes to: the baseline's, and those of its rounds."""
    rounds, every = scenario.train.rounds, scenario.evaluate.every
    return int(scenario.evaluate.baseline) + -(-rounds // every)
