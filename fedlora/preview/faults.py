"""All that is wrong with a scenario, where a run would tell the first of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

from fedlora.check import (
    check_channel,
    check_named_classes,
    check_run,
    check_server,
    devices_bring_data,
    model_checks,
    plugin_checks,
)
from fedlora.check_data import FILES, read_classes
from fedlora.config import ChannelConfig, Scenario
from fedlora.errors import FedloraError
from fedlora.split import Checkpoint, model_folder
from fedlora.tasks import (
    Record,
    RecordError,
    encode_records,
    fitting_tokenizer,
    label_column,
    make_task,
    partition,
    records_of,
    task_class,
)

T = TypeVar("T")

_MOST_RECORDS = 10  # that are told of each file


@dataclass
class Faults:
    """What was refused, each of it once.

    Attributes
    ----------
    told
        The sentences.
    """

    told: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        """Add a sentence that was not told yet."""
        if sentence not in self.told:
            self.told.append(sentence)

    def of(self, check: Callable[[], T]) -> T | None:
        """Return what a check returns; None where it refuses, which is noted."""
        try:
            return check()
        except FedloraError as error:
            self.add(str(error))
            return None


def find_faults(scenario: Scenario) -> list[str]:
    """Return everything for which a scenario would be refused; empty where it runs.

    By ``fedlora run``, or by a server where devices bring their own data or measure the channel.
    What only shows when something else is mended, such as tokens without a tokenizer, is not there.
    """
    bring, measured = devices_bring_data(scenario), scenario.channel.model == "measured"

    def run() -> None:
        if bring or measured:
            check_server(scenario)
        if bring:
            check_named_classes(scenario)
        else:
            known = dataclasses.replace(scenario, channel=ChannelConfig())
            check_run(known if measured else scenario)

    faults = Faults()
    log = logging.getLogger("fedlora.check_data")
    before, log.disabled = log.disabled, True  # what it warns of is in the view of the rows
    try:
        faults.of(run)
    finally:
        log.disabled = before
    if not faults.told:
        return []
    for check in plugin_checks(scenario):
        faults.of(check)
    if not measured:
        faults.of(lambda: check_channel(scenario))
    checkpoint = faults.of(lambda: Checkpoint(model_folder(scenario.model.path)))
    try:
        task_class(scenario.task.kind)
    except FedloraError:  # which is told
        return faults.told
    if checkpoint is not None:
        rests = [faults.of(check) for check in model_checks(scenario, checkpoint)[:2]]
        for check in model_checks(scenario, checkpoint)[2:] if None not in rests else ():
            faults.of(check)
    if bring:
        faults.of(lambda: check_named_classes(scenario))
    else:
        _look_at_data(scenario, checkpoint, faults)
    return faults.told


def _look_at_data(scenario: Scenario, checkpoint: Checkpoint | None, faults: Faults) -> None:
    kind, data = task_class(scenario.task.kind), scenario.data
    label = faults.of(lambda: label_column(data, labelled=kind.labelled))
    files: dict[Literal["train", "test"], list[Record]] = {}
    for which in FILES:
        path = getattr(data, which)
        if path.startswith("hub:") or (which == "test" and not path):
            continue
        found = faults.of(partial(records_of, kind, scenario, which, labelled=bool(label)))
        if found:
            files[which] = found
    labels = scenario.task.labels
    if label:
        if "train" not in files and not labels:  # classes are those of the records to train on
            return
        found_labels = faults.of(lambda: read_classes(scenario, files))
        if found_labels is None:
            return
        labels = tuple(found_labels)
    if "train" in files:
        clients, seed = scenario.federation.clients, scenario.seed
        faults.of(lambda: partition(files["train"], scenario.partition, clients, label or "", seed))
    if checkpoint is None:
        return
    try:
        tokenizer = fitting_tokenizer(kind, checkpoint)
        rows = checkpoint.size("vocab_size")
    except FedloraError:  # which is told
        return
    task = make_task(kind, scenario.task, labels)
    encode = partial(encode_records, task, tokenizer=tokenizer, data=data, rows=rows)
    for which, records in files.items():
        _look_at_records(getattr(data, which), records, encode, faults)


def _look_at_records(
    path: str, records: Sequence[Record], encode: Callable[..., object], faults: Faults
) -> None:
    """Note the first records that cannot be used, and how many were not looked at then."""
    start = 0
    for _ in range(_MOST_RECORDS):
        try:
            encode(records=records[start:])
            return
        except RecordError as error:
            faults.add(str(error.of(path, start + error.place)))
            start += error.place + 1
        except FedloraError as error:
            if not start:
                faults.add(str(error))
            return
        if start >= len(records):
            return
    faults.add(
        f"{len(records) - start} records of {path}, from record {start + 1} on, were not looked "
        "at; mend those above, and check again"
    )
