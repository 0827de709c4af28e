"""The records of a simulation, spread over its clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clients.build import EdgeParts, build_client
from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms
from clients.owner.origins import origins
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.tasks import (
    Record,
    RecordError,
    Sample,
    check_form,
    check_single,
    class_names,
    encode_records,
    holdout_split,
    label_column,
    partition,
    records_of,
    require_column,
    task_class,
)


class SimulatedData:
    """The records of a simulation, spread over its clients.

    Parameters
    ----------
    scenario
        Data, partition and seed are used.
    clients
        Number of clients.

    Attributes
    ----------
    needs_labels
        Whether a record without a label is refused.
    used
        How many records of the client that was built last ``train``, are ``held_out``, and are
        ``left_out`` as no sample can be made of them.
    """

    needs_labels = True

    def __init__(self, scenario: Scenario, clients: int) -> None:
        self.used: Mapping[str, int] = {}
        self.scenario = scenario
        self.clients = clients
        kind = task_class(scenario.task.kind)
        check_form(scenario.data, labelled=kind.labelled)
        self.label_column = label_column(scenario.data, labelled=kind.labelled)
        labelled = bool(self.label_column) and self.needs_labels
        self.records = records_of(kind, scenario, "train", labelled=labelled)
        self.test: list[Record] = []
        if scenario.data.test:
            self.test = records_of(kind, scenario, "test", labelled=labelled)
        for key, own in self._files if labelled else ():  # a share would not know the row
            require_column(own, self.label_column, "data.label", key)
        self.parts = partition(
            self.records, scenario.partition, clients, self.label_column, scenario.seed
        )

    @property
    def _files(self) -> tuple[tuple[str, Sequence[Record]], ...]:
        """The records by key: a device's paths are not told to the server, errors are."""
        return ("data.train", self.records), ("data.test", self.test)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names: the scenario's, or all that occur in the training data."""
        if self.scenario.task.labels or not self.label_column:
            return self.scenario.task.labels
        return tuple(class_names(self.records, self.scenario.data, "data.train"))

    def rows_of(self, client: int) -> tuple[list[Record], list[Record]]:
        """Return one client's training and held-out records.

        With a common test file client k evaluates rows k, k + clients, ..., so that the clients
        together evaluate every row once.
        """
        if self.test:
            train: Sequence[int] = self.parts[client].tolist()
            return [self.records[i] for i in train], list(self.test[client :: self.clients])
        kept, held_out = holdout_split(
            self.parts[client], self.scenario.data.holdout, self.scenario.seed, client
        )
        return [self.records[i] for i in kept], [self.records[i] for i in held_out]

    def build(
        self,
        parts: EdgeParts,
        client: int,
        part: int | None = None,
        terms: OwnerTerms | None = None,
        run: str = "",
    ) -> EdgeClient:
        """Encode one client's records and build it.

        Parameters
        ----------
        parts
            What the clients of this process share.
        client
            Number of the client.
        part
            Its share of the records, by default its own.
        terms
            What its owner allows.
        run
            Name of the run; empty where it has none.
        """
        rows = self.rows_of(client if part is None else part)
        samples = (self.encode(rows[0], parts), self.encode(rows[1], parts))
        for own in samples if parts.tokenizer is None else ():
            check_single(self.scenario, own)
        self.used = _used(rows, samples)
        records = None
        if terms is not None and terms.ledger is not None:
            records = origins(rows, samples)
        return build_client(parts, client, samples[0], samples[1], terms, records, run)

    def encode(self, records: Sequence[Record], parts: EdgeParts) -> list[Sample]:
        """Return the samples of records; an error names the row of the record in its file."""
        try:
            return encode_records(
                parts.model.task,
                records,
                parts.tokenizer,
                self.scenario.data,
                len(parts.model.front.tokens.weight) if parts.tokenizer else 0,
            )
        except RecordError as error:
            raise self._named(records[error.place], error) from None

    def _named(self, record: Record, error: RecordError) -> FedloraError:
        """Return an error with the row of its record in the file that it came from."""
        for key, own in self._files:
            for row, other in enumerate(own):
                if other is record:
                    return error.of(key, row)
        return error

    def holdings(self, client: int, resolved: Scenario) -> dict[str, Any]:
        """Return what a server is told of a simulated client's rows: classes, and rows of each.

        They are those of the partition's column where records have no label. Under privacy the
        server is not told how often each occurs: that is exact.

        Parameters
        ----------
        client
            Its number.
        resolved
            The scenario with the classes that were found.
        """
        classes = {"classes": list(resolved.task.labels)}
        if resolved.privacy.enabled:
            return classes
        column = self.label_column or self.scenario.partition.column
        counts: dict[str, int] = {}
        for index in self.parts[client].tolist():
            value = self.records[index].get(column, "") if column else ""
            counts[value] = counts.get(value, 0) + 1
        return {**classes, "labels": list(counts), "label_rows": list(counts.values())}


def _used(
    rows: Sequence[Sequence[Record]], samples: Sequence[Sequence[Sample]]
) -> Mapping[str, int]:
    """Return how many records gave samples; one may give several."""
    train, held_out = (len({sample.source for sample in own}) for own in samples)
    left_out = sum(map(len, rows)) - train - held_out
    return {"train": train, "held_out": held_out, "left_out": left_out}
