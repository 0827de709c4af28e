"""What refuses a scenario's records: read, divided and encoded as the clients will."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from fedlora.config import Scenario
from fedlora.errors import FedloraError, shown
from fedlora.geometry import Geometry
from fedlora.participation import check_uploads
from fedlora.privacy.mechanisms import mechanism_of
from fedlora.privacy.plan import check_classes, plan_release
from fedlora.split import Checkpoint
from fedlora.tasks import (
    Record,
    RecordError,
    Rows,
    Sample,
    Tally,
    Task,
    Tokenizer,
    check_front,
    check_labels,
    check_single,
    class_names,
    encode_records,
    front_of,
    head_of,
    holdout_split,
    label_column,
    make_task,
    partition,
    records_of,
    require_column,
    task_class,
    vectors_of,
)

_log = logging.getLogger(__name__)
FILES: tuple[Literal["train"], Literal["test"]] = ("train", "test")


def check_data(
    scenario: Scenario, tokenizer: Tokenizer | None, geometry: Geometry, checkpoint: Checkpoint
) -> None:
    """Read and encode the data as the clients will; what the hub holds is left to them.

    Labels come first, over whole files: the clients only see their shares.

    Parameters
    ----------
    scenario
        What is to run.
    tokenizer, geometry, checkpoint
        What its records are encoded with.

    Raises
    ------
    FedloraError
        When a record cannot be used, or a client's share is too small or too large.
    """
    kind, data = task_class(scenario.task.kind), scenario.data
    label = label_column(data, labelled=kind.labelled)
    files = {
        which: records_of(kind, scenario, which, labelled=bool(label))
        for which in FILES
        if (which == "train" or data.test) and not getattr(data, which).startswith("hub:")
    }
    labels = read_classes(scenario, files) if label else scenario.task.labels
    geometry.check_r_cut(scenario, len(labels))
    if scenario.privacy.enabled and (labels or not kind.labelled):
        check_classes(scenario, len(labels))
    task = make_task(kind, scenario.task, labels)
    encode = _Encoder(scenario, task, tokenizer, geometry, checkpoint)
    clients = scenario.federation.clients
    for client in range(clients) if "test" in files else ():
        encode(files["test"], range(client, len(files["test"]), clients), data.test, client)
    if "train" not in files:
        encode.tell()
        return
    parts = partition(files["train"], scenario.partition, clients, label, scenario.seed)
    shares: list[tuple[Rows, ...]] = [
        (part,) if data.test else holdout_split(part, data.holdout, scenario.seed, client)
        for client, part in enumerate(parts)
    ]
    if (mechanism := mechanism_of(scenario.privacy)) is not None:
        rows = [len(share[0]) for share in shares]
        for count in sorted(set(rows)):
            plan_release(
                mechanism,
                scenario,
                count,
                len(labels),
                pools=geometry.classifies,
                trains_head=geometry.trains_head,
            )
        check_uploads(scenario, rows)
    for client, own in enumerate(shares):
        for share in own:
            encode(files["train"], share.tolist(), data.train, client)
    encode.tell()
    _check_held_out(scenario, shares, len(files.get("test", ())))


def _check_held_out(scenario: Scenario, shares: Sequence[tuple[Rows, ...]], tests: int) -> None:
    """Refuse a client with more held-out rows than ``evaluate.max_rows``, as the server does."""
    clients, most = scenario.federation.clients, scenario.evaluate.max_rows
    held = [
        len(range(client, tests, clients)) if tests else sum(len(share) for share in own[1:])
        for client, own in enumerate(shares)
    ]
    if max(held) > most:
        client = held.index(max(held))
        raise FedloraError(
            f"evaluate.max_rows is {most}, and client {client} holds out {held[client]} rows; "
            "raise it, or hold out fewer"
        )


def read_classes(
    scenario: Scenario, files: Mapping[Literal["train", "test"], Sequence[Record]]
) -> Sequence[str]:
    """Return the classes; empty where they are those of the hub's records.

    Raises
    ------
    FedloraError
        When a record has none, or another than the training data or ``task.labels``.
    """
    data, labels = scenario.data, scenario.task.labels
    check_labels(labels)
    for which, records in files.items():
        path = getattr(data, which)
        require_column(records, data.label, "data.label", path)
        if not labels and which == "train":
            labels = tuple(class_names(records, data, path))
        if labels:
            _check_labels(scenario, records, labels, path)
        if which == "train" and len(found := {record[data.label] for record in records}) == 1:
            _log.warning("all records of %s have the class %s", path, shown(*found))
    return labels


@dataclass(frozen=True)
class _Encoder:
    """Encodes records only to see whether that can be done, and how many give no sample.

    Attributes
    ----------
    scenario, task, tokenizer, geometry, checkpoint
        What they are encoded with.
    tallies
        What became of the records, by file.
    """

    scenario: Scenario
    task: Task
    tokenizer: Tokenizer | None
    geometry: Geometry
    checkpoint: Checkpoint
    tallies: dict[str, Tally] = field(default_factory=dict)

    def __call__(
        self, records: Sequence[Record], rows: Sequence[int], path: str, client: int | None = None
    ) -> None:
        """Refuse a share with a record that cannot be used, with its row in the file."""
        if not self.task.labels and self.task.labelled:
            return  # its classes are those of the hub's records
        own = [records[row] for row in rows]
        vocabulary = self.checkpoint.size("vocab_size")
        try:
            samples = encode_records(self.task, own, self.tokenizer, self.scenario.data, vocabulary)
            if not self.task.tokens:
                check_single(self.scenario, samples)
                self._try_ends(samples[:1])
        except RecordError as error:
            raise error.of(path, rows[error.place]) from None
        except FedloraError as error:
            whose = "" if client is None else f" (client {client})"
            raise FedloraError(f"{path}{whose}: {error}") from None
        self.tallies.setdefault(path, Tally()).add(len(own), samples)

    def _try_ends(self, samples: Sequence[Sample]) -> None:
        """Refuse a front of the task's own that cannot take its own samples, or cannot train."""
        if self.tallies or not samples:
            return
        width, seed = self.geometry.embedding_width, self.scenario.seed
        front = front_of(self.task, self.checkpoint, torch.float32, width, seed)
        vectors_of(self.task, front, samples, width)
        check_front(self.scenario, front)
        head_of(self.task, self.checkpoint, torch.float32, self.geometry.head_width, seed)

    def tell(self) -> None:
        """Warn of records that are cut or left out."""
        for path, tally in self.tallies.items():
            for told in tally.told(self.scenario.task.max_length):
                _log.warning("%s: %s", path, told)


def _check_labels(
    scenario: Scenario, records: Sequence[Record], labels: Sequence[str], path: str
) -> None:
    column, known = scenario.data.label, frozenset(labels)
    for row, record in enumerate(records, 1):
        if record[column] not in known:
            whose = "task.labels" if scenario.task.labels else f"classes of {scenario.data.train}"
            raise FedloraError(
                f"record {row} of {path} has the class {shown(record[column])}, which is not among "
                f"the {len(labels)} {whose}; add it to task.labels or mend the data"
            )
