"""The records of a device: its owner's file, held-out rows as its owner says."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from clients.build import EdgeParts
from clients.owner import content, holdout
from clients.simulated_data import SimulatedData
from fedlora.config import NodeKeys, Scenario
from fedlora.errors import FedloraError
from fedlora.tasks import IGNORED, Record, Sample, Tally, label_of

log = logging.getLogger("fedlora.edge")


class OwnRecords(SimulatedData):
    """One device's records, all of which are its own.

    Under a limit nothing about a label decides whether a record takes part, as that would tell of
    it: one whose label is none of the run's classes adds its noise and nothing else.

    Parameters
    ----------
    scenario
        As ``clients.owner.scenario`` has it.
    keys
        The node configuration.
    """

    def __init__(self, scenario: Scenario, keys: NodeKeys) -> None:
        self._limited = keys.limit is not None
        self.needs_labels = not self._limited
        self._lots: Path | None = None
        if keys.holdout is not None or self._limited or scenario.privacy.enabled:
            ledger = keys.ledger()
            self._lots = ledger.with_name(ledger.name + ".holdout")
        super().__init__(scenario, 1)

    def rows_of(self, client: int) -> tuple[list[Record], list[Record]]:
        """See ``SimulatedData``; what is held out is the owner's to say."""
        share = self.scenario.data.holdout
        if self._lots is None or self.test or not share:
            return super().rows_of(client)
        lots = holdout.draw(self._lots, map(content, self.records), share)
        pairs = list(zip(self.records, lots, strict=True))
        if all(lots):
            raise FedloraError(
                f"all {len(lots)} records are held out, so none is left to train on; set holdout "
                "to 0 or a test file of their own"
            )
        return [r for r, held in pairs if not held], [r for r, held in pairs if held]

    def encode(self, records: Sequence[Record], parts: EdgeParts) -> list[Sample]:
        """See ``SimulatedData``."""
        samples = self._encode(records, parts)
        tally = Tally()
        tally.add(len(records), samples)
        for told in tally.told(self.scenario.task.max_length):
            log.warning("%s", told)
        return samples

    def _encode(self, records: Sequence[Record], parts: EdgeParts) -> list[Sample]:
        names = parts.model.task.labels
        if not (self._limited and self.label_column and records):
            return super().encode(records, parts)
        odd = {i for i, r in enumerate(records) if label_of(r, self.label_column) not in names}
        if odd:
            log.warning(
                "%d of %d records have a %s that is none of the run's classes; they take part with "
                "noise alone, as leaving them out would tell of their labels",
                len(odd),
                len(records),
                self.label_column,
            )
        known = [
            {**r, self.label_column: names[0]} if i in odd else r for i, r in enumerate(records)
        ]
        return [
            dataclasses.replace(sample, target=IGNORED) if sample.source in odd else sample
            for sample in super().encode(known, parts)
        ]
