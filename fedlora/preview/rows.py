"""What a scenario's records come to: who has which, how long they are, what is learnt of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedlora.check import devices_bring_data
from fedlora.check_data import FILES, read_classes
from fedlora.config import Scenario
from fedlora.preview.sizes import Load
from fedlora.split import Checkpoint
from fedlora.tasks import (
    IGNORED,
    Record,
    Sample,
    Tally,
    Tokenizer,
    encode_records,
    fitting_tokenizer,
    holdout_split,
    label_column,
    make_task,
    partition,
    records_of,
    task_class,
)

_SHOWN_ROWS = 3
_SHOWN_NUMBERS = 4


@dataclass(frozen=True)
class ClientRows:
    """One client's rows.

    Attributes
    ----------
    train, held_out
        How many it trains on, and how many it holds out.
    classes
        How many of both each class has; empty for a task without.
    """

    train: int
    held_out: int
    classes: Mapping[str, int]


SampleView = tuple[Sequence[int], int]


@dataclass(frozen=True)
class ClientSamples:
    """One client's samples as they are sent, in the order of its data.

    Attributes
    ----------
    train, held_out
        Of each, its tokens as it is cut, and how many of them are to be predicted.
    """

    train: Sequence[SampleView]
    held_out: Sequence[SampleView]


@dataclass(frozen=True)
class ShownRow:
    """A row as the model sees it.

    Attributes
    ----------
    row
        Its number in the training file, from 1.
    tokens
        Its tokens as texts; of a task without tokens the numbers at each place.
    learnt
        Whether each of them is to be predicted; none of a classifier's is.
    target
        Its class; empty for language modelling.
    """

    row: int
    tokens: Sequence[str]
    learnt: Sequence[bool]
    target: str

    def pieces(self) -> list[tuple[bool, list[str]]]:
        """Return the tokens in runs that are learnt, or not."""
        runs = itertools.groupby(zip(self.learnt, self.tokens, strict=True), lambda pair: pair[0])
        return [(learnt, [token for _, token in run]) for learnt, run in runs]


@dataclass(frozen=True)
class RowView:
    """The records of a scenario.

    Attributes
    ----------
    clients, samples
        Rows by client, and what they are as samples.
    lengths
        Tokens of each training record that is used, uncut.
    learnt
        How many of them, as they are cut, are to be predicted; none of a classifier's.
    tallies
        Records that are used, cut and left out, by file.
    warnings
        What a run says of these.
    shown
        The first rows.
    labels
        The classes; empty for language modelling.
    """

    clients: Sequence[ClientRows]
    samples: Sequence[ClientSamples]
    lengths: Sequence[int]
    learnt: Sequence[int]
    tallies: Mapping[str, Tally]
    warnings: Sequence[str]
    shown: Sequence[ShownRow]
    labels: Sequence[str]

    def quartiles(self) -> tuple[float, ...]:
        """Return least, quartiles and longest of the lengths."""
        return tuple(float(q) for q in np.quantile(self.lengths, [0, 0.25, 0.5, 0.75, 1]))

    def load(self, max_length: int) -> Load:
        """Return what sizes follow from."""
        tokens = np.minimum(self.lengths, max_length)
        sets = (rows for own in self.samples for rows in (own.train, own.held_out))
        together = sum(len(ids) for rows in sets for ids, _ in rows)
        trained = sum(len(own.train) for own in self.samples)
        return Load(float(tokens.mean()), float(np.mean(self.learnt)), together, trained)


def view_rows(scenario: Scenario, checkpoint: Checkpoint) -> RowView | None:
    """Read and encode the records as a run does; None where they are the hub's, or the devices'.

    Raises
    ------
    FedloraError
        When the scenario cannot be run; see ``find_faults``.
    """
    kind, data = task_class(scenario.task.kind), scenario.data
    if devices_bring_data(scenario):
        return None
    if any(getattr(data, which).startswith("hub:") for which in FILES):
        return None
    label = label_column(data, labelled=kind.labelled)
    files = {
        which: records_of(kind, scenario, which, labelled=bool(label))
        for which in FILES
        if which == "train" or data.test
    }
    labels = read_classes(scenario, files) if label else scenario.task.labels
    task, tokenizer = make_task(kind, scenario.task, labels), fitting_tokenizer(kind, checkpoint)
    made: dict[str, list[Sample]] = {}
    tallies: dict[str, Tally] = {}
    warnings: list[str] = []
    for which, records in files.items():
        path = getattr(data, which)
        rows = checkpoint.size("vocab_size")
        made[which] = encode_records(task, records, tokenizer, data, rows)
        tally = tallies.setdefault(path, Tally())
        tally.add(len(records), made[which])
        warnings += [f"{path}: {told}" for told in tally.told(scenario.task.max_length)]
    longest = [sample.length + sample.cut for sample in made["train"]]
    names = [str(name) for name in labels]
    shown = [_shown(sample, names, tokenizer) for sample in made["train"][:_SHOWN_ROWS]]
    shares = _shares(scenario, files["train"], len(files.get("test", ())), label)
    learnt = [_viewed(sample)[1] for sample in made["train"]]
    return RowView(
        [_classes(files["train"], *share, label, own=not data.test) for share in shares],
        _samples(shares, made),
        longest,
        learnt,
        tallies,
        warnings,
        shown,
        names,
    )


def _shares(
    scenario: Scenario, records: Sequence[Record], tests: int, label: str
) -> list[tuple[list[int], list[int]]]:
    """Return for each client its rows to train on, and those that it holds out, of their files."""
    clients, seed = scenario.federation.clients, scenario.seed
    found = []
    for client, part in enumerate(partition(records, scenario.partition, clients, label, seed)):
        if tests:
            found.append((part.tolist(), list(range(client, tests, clients))))
        else:
            train, held = holdout_split(part, scenario.data.holdout, seed, client)
            found.append((train.tolist(), held.tolist()))
    return found


def _classes(
    records: Sequence[Record], train: Sequence[int], held: Sequence[int], label: str, *, own: bool
) -> ClientRows:
    """Return a client's rows; those that it holds out count by class where they are its own."""
    rows = [*train, *held] if own else train
    classes = Counter(records[row][label] for row in rows) if label else {}
    return ClientRows(len(train), len(held), dict(sorted(classes.items())))


def _samples(
    shares: Sequence[tuple[list[int], list[int]]], made: Mapping[str, Sequence[Sample]]
) -> list[ClientSamples]:
    """Return each client's samples; a record of which nothing is left gives none."""
    of_file: dict[str, dict[int, list[SampleView]]] = {}
    for which, samples in made.items():
        of_file[which] = {}
        for sample in samples:
            of_file[which].setdefault(sample.source, []).append(_viewed(sample))
    train, held = of_file["train"], of_file.get("test", of_file["train"])
    return [
        ClientSamples(
            [size for row in own for size in train.get(row, ())],
            [size for row in out for size in held.get(row, ())],
        )
        for own, out in shares
    ]


def _viewed(sample: Sample) -> SampleView:
    """Return a sample's tokens, and how many of them are to be predicted."""
    learnt = 0
    if isinstance(sample.target, tuple):
        learnt = sum(target != IGNORED for target in sample.target)
    if sample.values is not None:  # equal places have equal vectors, as equal tokens have
        return [hash(row.numpy().tobytes()) for row in sample.values], 0
    return sample.ids, learnt


def _shown(sample: Sample, names: Sequence[str], tokenizer: Tokenizer | None) -> ShownRow:
    if tokenizer is None or sample.values is not None:
        rows = [] if sample.values is None else sample.values.tolist()
        return ShownRow(sample.source + 1, [*map(_numbers, rows)], [False] * len(rows), "")
    tokens = [tokenizer.backend.decode([n], skip_special_tokens=False) for n in sample.ids]
    if isinstance(sample.target, tuple):
        learnt = [False, *(target != IGNORED for target in sample.target[:-1])]
        return ShownRow(sample.source + 1, tokens, learnt, "")
    target = names[sample.target] if sample.target < len(names) else ""
    return ShownRow(sample.source + 1, tokens, [False] * len(tokens), target)


def _numbers(values: Sequence[float]) -> str:
    """Return one place of a sequence that is no text, shortened."""
    shown = " ".join(f"{value:.3g}" for value in values[:_SHOWN_NUMBERS])
    more = " ..." if len(values) > _SHOWN_NUMBERS else ""
    return f"({shown}{more})"
