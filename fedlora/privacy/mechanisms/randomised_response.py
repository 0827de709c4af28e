"""Randomised response: label DP (label differential privacy), paid once and not every gradient.

Against a server that holds the activations, a classification gradient adds one secret: the label.
So the client may draw a randomised label once for each sample and train on it for good (Warner
1965; Kairouz, Bonawitz and Ramage 2016). Gradients, the client's head, its losses: all of it is
computed from the randomised label and from what the server has, so all of it is covered, without
clipping, noise, or a bound on rounds. The label is epsilon-differentially private with delta 0: at
epsilon 8 one label in 3,000 is wrong for two classes, at epsilon 1 one in 4.

What it does not cover are the inputs, as little as noise on gradients does, and labels that follow
from the inputs, such as the next tokens of a text.

=====================  ====================================================
``classes``            K
``epsilon``            of the label, at delta 0
``flip_probability``   (K - 1) / (e^epsilon + K - 1)
=====================  ====================================================
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fedlora.checks import check_epsilon
from fedlora.errors import FedloraError
from fedlora.storage import journal

FORMAT = "fedlora-randomised-labels/2"
_UNNAMED = "fedlora-randomised-labels/1"  # its labels are places in a list that it does not hold
_SHOWN = 3


def flip_probability(classes: int, epsilon: float) -> float:
    """Return the probability that a label is replaced by another one.

    Raises
    ------
    FedloraError
        When there are fewer than 2 classes or epsilon is out of range.
    """
    check_epsilon("epsilon", epsilon)
    if classes < 2:
        raise FedloraError(f"{classes} classes leave no label to protect; use 2 or more")
    return (classes - 1) / (math.exp(epsilon) + classes - 1)


def label_auc(classes: int, epsilon: float) -> float:
    """Return with which AUC the best attacker tells two labels apart by their randomised labels.

    Of the true class, of the other one and of any third a report says a, b and c; the first speaks
    for the true class, the second against, and the third for neither.
    """
    b = flip_probability(classes, epsilon) / (classes - 1)
    a = 1 - flip_probability(classes, epsilon)
    c = max(0.0, 1 - a - b)
    return a * a + 2 * a * c + a * b + c * c / 2


def randomise(
    label: int, classes: int, epsilon: float, below: Callable[[int], int] = secrets.randbelow
) -> int:
    """Draw a randomised label.

    Parameters
    ----------
    label, classes, epsilon
        The true class, how many there are, and the label's privacy. A label of none of them (-1) is
        drawn evenly, which lies between what a right and a wrong class are drawn with.
    below
        Draws a whole number below its argument; by default from the operating system's generator.

    Raises
    ------
    FedloraError
        As ``flip_probability``, and when the label is no class.
    """
    if label == -1:
        return below(classes)
    if not 0 <= label < classes:
        raise FedloraError(f"label {label} is not among {classes} classes; mend the data")
    # rounded up, so that the truth is never kept more often than epsilon allows
    threshold = math.ceil(flip_probability(classes, epsilon) * 2.0**128)
    if below(2**128) >= threshold:
        return label
    return (label + 1 + below(classes - 1)) % classes


Draw = Callable[[int, int, float, Callable[[int], int]], int]


class RandomisedLabels:
    """A client's randomised labels, drawn once and kept on its disk.

    Drawing again would spend epsilon again, so what was drawn is synced to disk before it is used,
    and the file refuses another epsilon, other classes and another column. It holds the names of
    the classes, so a run may list them in another order. Keep it beside the ledger, under the
    ledger's lock.

    Parameters
    ----------
    path
        File; it is created when there is none. None keeps labels in memory, for a simulation.
    classes
        Names of the classes; a label is a place in them.
    epsilon
        Privacy of each label, replace-one, whatever is computed from it.
    below
        See ``randomise``.
    column
        Column of the data that holds the true labels.
    draw
        Draws a label as ``randomise`` does.

    Raises
    ------
    FedloraError
        When the file cannot be read, is damaged, has no class names, or was drawn for other
        classes, another column or another epsilon.

    Attributes
    ----------
    epsilon
        As given.
    """

    def __init__(
        self,
        path: Path | None,
        classes: Sequence[str],
        epsilon: float,
        below: Callable[[int], int] = secrets.randbelow,
        *,
        column: str = "",
        draw: Draw = randomise,
    ) -> None:
        flip_probability(len(classes), epsilon)
        self._path, self._classes, self.epsilon = path, list(classes), epsilon
        self._below, self._column, self._draw = below, column, draw
        self._drawn: dict[int, int] = {}
        if path is not None and path.exists():
            self._read(path)

    def missing(self, samples: Iterable[int]) -> set[int]:
        """Return the samples that have no randomised label yet."""
        return set(samples) - self._drawn.keys()

    def draw(self, labels: Mapping[int, int]) -> dict[int, int]:
        """Return the randomised label of each sample.

        Parameters
        ----------
        labels
            True label by sample identifier (``Ledger.sample_ids``).

        Raises
        ------
        FedloraError
            When a label is no class or the disk fails.
        """
        new = {
            sample: self._draw(label, len(self._classes), self.epsilon, self._below)
            for sample, label in labels.items()
            if sample not in self._drawn
        }
        if new:
            self._write(self._drawn | new)
            self._drawn |= new
        return {sample: self._drawn[sample] for sample in labels}

    def _write(self, drawn: Mapping[int, int]) -> None:
        if self._path is None:
            return
        record = {
            "format": FORMAT,
            "column": self._column,
            "classes": self._classes,
            "epsilon": self.epsilon,
            "labels": list(drawn.items()),
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            journal.replace(self._path, [journal.encode(record)])
        except OSError as error:
            raise _failed("write", self._path, error) from error

    def _read(self, path: Path) -> None:
        try:
            records = [record for record, _ in journal.read(path)]
        except OSError as error:
            raise _failed("read", path, error) from error
        record = records[0] if len(records) == 1 else None
        if record is not None and record.get("format") == _UNNAMED:
            raise FedloraError(
                f"randomised labels {path} do not say which classes they stand for, as an earlier "
                "version wrote them, so they cannot be used safely; move the file away to draw "
                f"again, which adds epsilon {self.epsilon:g} to what the ledger holds as spent"
            )
        if record is None or record.get("format") != FORMAT:
            raise FedloraError(
                f"randomised labels {path} are damaged; restore them, since drawing again "
                "spends their epsilon again"
            )
        self._check_same(path, record)
        place = [self._classes.index(name) for name in record["classes"]]
        self._drawn = {sample: place[label] for sample, label in record["labels"]}

    def _check_same(self, path: Path, record: journal.Record) -> None:
        """Refuse labels that were drawn for something else than what the run asks for."""
        theirs, ours = set(record["classes"]), set(self._classes)
        if record["column"] != self._column:
            drawn, asked = f"for the column {record['column']!r}", f"{self._column!r}"
        elif theirs != ours:
            odd = ", ".join(map(repr, sorted(theirs ^ ours)[:_SHOWN]))
            drawn = f"for {len(theirs)} classes"
            asked = f"for these {len(ours)}, of which only one side has {odd}"
        elif record["epsilon"] != self.epsilon:
            drawn, asked = f"at epsilon {record['epsilon']:g}", f"{self.epsilon:g}"
        else:
            return
        raise FedloraError(
            f"randomised labels {path} were drawn {drawn}, not {asked}; keep that setting, since "
            "drawing again adds to what is spent"
        )


def _failed(verb: str, path: Path, error: OSError) -> FedloraError:
    return FedloraError(f"cannot {verb} {path}: {error.strerror}; mend the disk or the path")
