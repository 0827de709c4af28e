"""What a scenario's records come to: who has which, how long they are, what is learnt of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedlora.check import FILES, read_classes
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
    load_records,
    task_class,
)
from fedlora.tasks.partition import partition

_SHOWN_ROWS = 3


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


@dataclass(frozen=True)
class ShownRow:
    """A row as the model sees it.

    Attributes
    ----------
    row
        Its number in the training file, from 1.
    tokens
        Its tokens as texts.
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
    clients
        Rows by client.
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
        return Load(float(tokens.mean()), float(np.mean(self.learnt)), int(tokens.sum()))


def view_rows(scenario: Scenario, checkpoint: Checkpoint) -> RowView | None:
    """Read and encode the records as a run does; None where they are the hub's.

    Raises
    ------
    FedloraError
        When the scenario cannot be run; see ``find_faults``.
    """
    kind, data = task_class(scenario.task.kind), scenario.data
    if any(getattr(data, which).startswith("hub:") for which in FILES):
        return None
    label = label_column(data, pooled=kind.pooled)
    files = {
        which: load_records(data, which, labelled=bool(label))
        for which in FILES
        if which == "train" or data.test
    }
    labels = read_classes(scenario, files) if label else scenario.task.labels
    task, tokenizer = kind(scenario.task, labels), fitting_tokenizer(kind, checkpoint)
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
    longest = [len(sample.ids) + sample.cut for sample in made["train"]]
    names = [str(name) for name in labels]
    shown = [_shown(sample, names, tokenizer) for sample in made["train"][:_SHOWN_ROWS]]
    clients = _clients(scenario, files["train"], len(files.get("test", ())), label)
    learnt = [
        sum(target != IGNORED for target in sample.target)
        if isinstance(sample.target, tuple)
        else 0
        for sample in made["train"]
    ]
    return RowView(clients, longest, learnt, tallies, warnings, shown, names)


def _clients(
    scenario: Scenario, records: Sequence[Record], tests: int, label: str
) -> list[ClientRows]:
    clients, seed = scenario.federation.clients, scenario.seed
    found = []
    for client, part in enumerate(partition(records, scenario.partition, clients, label, seed)):
        rows = part.tolist()
        held = len(range(client, tests, clients))
        if not tests:
            held = len(holdout_split(part, scenario.data.holdout, seed, client)[1])
        classes = Counter(records[row][label] for row in rows) if label else {}
        train = len(rows) if tests else len(rows) - held
        found.append(ClientRows(train, held, dict(sorted(classes.items()))))
    return found


def _shown(sample: Sample, names: Sequence[str], tokenizer: Tokenizer) -> ShownRow:
    tokens = [tokenizer.backend.decode([n], skip_special_tokens=False) for n in sample.ids]
    if isinstance(sample.target, tuple):
        learnt = [False, *(target != IGNORED for target in sample.target[:-1])]
        return ShownRow(sample.source + 1, tokens, learnt, "")
    target = names[sample.target] if sample.target < len(names) else ""
    return ShownRow(sample.source + 1, tokens, [False] * len(tokens), target)
