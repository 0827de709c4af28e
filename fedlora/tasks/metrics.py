"""Counts that a client fills and the server adds up, and the metrics that follow from them.

Counts are sums, so that a metric over all clients is exact whatever their sizes; a mean of the
clients' own accuracies or perplexities is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from fedlora.errors import FedloraError, ProtocolError

_LARGEST_COUNT = 2**53  # above it JSON readers lose exactness
_LARGEST_LOSS = 1e18  # far above any sum of cross-entropies


@dataclass(frozen=True)
class Metric:
    """A measured value.

    Attributes
    ----------
    name
        Such as ``accuracy`` or ``perplexity``.
    value
        The measurement.
    higher_is_better
        Which direction is an improvement.
    """

    name: str
    value: float
    higher_is_better: bool


@dataclass(frozen=True)
class ClassificationCounts:
    """Confusion matrix and loss sum.

    Attributes
    ----------
    confusion
        Samples by true class (row) and predicted class (column).
    loss
        Sum of the samples' cross-entropies in nats.
    """

    confusion: tuple[tuple[int, ...], ...]
    loss: float = 0.0

    @classmethod
    def zero(cls, classes: int) -> ClassificationCounts:
        """Return the counts of no sample."""
        return cls(((0,) * classes,) * classes)

    @classmethod
    def from_predictions(
        cls, predicted: Sequence[int], true: Sequence[int], classes: int, loss: float
    ) -> ClassificationCounts:
        """Count predictions.

        Parameters
        ----------
        predicted, true
            Class indices from 0, one for each sample; a true one of -1, none of the classes, is
            never right.
        classes
            Number of classes.
        loss
            Sum of the samples' losses.
        """
        confusion = [[0] * classes for _ in range(classes)]
        for guess, truth in zip(predicted, true, strict=True):
            row = truth if truth >= 0 else (guess + 1) % classes
            confusion[row][guess] += 1
        return cls(tuple(tuple(row) for row in confusion), loss)

    @classmethod
    def from_dict(cls, value: Any, classes: int) -> ClassificationCounts:
        """Read what ``to_dict`` wrote on the other side of a wire.

        Raises
        ------
        ProtocolError
            When it is not the counts of this many classes.
        """
        table = read_table(value, "confusion", "loss")
        rows = table["confusion"]
        square = isinstance(rows, list) and len(rows) == classes
        if not square or not all(isinstance(row, list) and len(row) == classes for row in rows):
            raise ProtocolError(
                f"confusion is no {classes} x {classes} matrix; both sides need equal task.labels"
            )
        confusion = tuple(tuple(read_count(item, "confusion") for item in row) for row in rows)
        return cls(confusion, read_loss(table["loss"], sum(sum(row) for row in confusion)))

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {"confusion": [list(row) for row in self.confusion], "loss": self.loss}

    @overload
    def __add__(self, other: ClassificationCounts) -> ClassificationCounts: ...
    @overload
    def __add__(self, other: NoisedCounts) -> NoisedCounts: ...
    def __add__(self, other: ClassificationCounts | NoisedCounts) -> Any:
        """Return the counts of both sets of samples; beside noised ones the matrix is lost."""
        if isinstance(other, NoisedCounts):
            return other + self
        confusion = tuple(
            tuple(a + b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self.confusion, other.confusion, strict=True)
        )
        return ClassificationCounts(confusion, self.loss + other.loss)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(sum(row) for row in self.confusion)

    @property
    def right(self) -> int:
        """Number of samples whose class was predicted."""
        return sum(row[k] for k, row in enumerate(self.confusion))

    @property
    def accuracy(self) -> float:
        """Share of samples whose class was predicted."""
        return self.right / self.samples

    @property
    def macro_f1(self) -> float:
        """Mean of the classes' F1 scores, over the classes that occur or were predicted.

        F1 = 2 TP / (2 TP + FP + FN), where the denominator is the row sum plus the column sum.
        """
        scores = []
        for k, row in enumerate(self.confusion):
            occurrences = sum(row) + sum(other[k] for other in self.confusion)
            if occurrences:
                scores.append(2 * row[k] / occurrences)
        return sum(scores) / len(scores)

    def metrics(self) -> tuple[Metric, ...]:
        """Return accuracy (the metric of the task), macro-F1 and mean loss.

        Raises
        ------
        FedloraError
            When there is no sample.
        """
        _require_some(self.samples)
        return (
            Metric("accuracy", self.accuracy, True),
            Metric("macro_f1", self.macro_f1, True),
            Metric("loss", self.loss / self.samples, False),
        )


@dataclass(frozen=True)
class NoisedCounts:
    """Sums over held-out samples of a device that tells them with noise.

    Attributes
    ----------
    samples
        Number of samples, which is exact.
    correct
        Samples whose class was predicted, with noise: any real number.
    loss
        Sum of the samples' clipped cross-entropies in nats, with noise.
    """

    samples: int
    correct: float
    loss: float

    @classmethod
    def from_dict(cls, value: Any) -> NoisedCounts:
        """Read what ``to_dict`` wrote on the other side of a wire.

        Raises
        ------
        ProtocolError
            When it is not such sums.
        """
        table = read_table(value, "samples", "correct", "loss")
        samples = read_count(table["samples"], "samples")
        sums = [_real(table[name], name) for name in ("correct", "loss")]
        return cls(samples, *sums)

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as JSON values."""
        return {"samples": self.samples, "correct": self.correct, "loss": self.loss}

    def __add__(self, other: NoisedCounts | ClassificationCounts) -> NoisedCounts:
        """Return the sums over both sets of samples."""
        correct = other.correct if isinstance(other, NoisedCounts) else other.right
        return NoisedCounts(
            self.samples + other.samples, self.correct + correct, self.loss + other.loss
        )

    def metrics(self) -> tuple[Metric, ...]:
        """Return accuracy, within 0 to 1, and mean loss.

        Raises
        ------
        FedloraError
            When there is no sample.
        """
        _require_some(self.samples)
        return (
            Metric("accuracy", min(max(self.correct / self.samples, 0.0), 1.0), True),
            Metric("loss", max(self.loss / self.samples, 0.0), False),
        )


@dataclass(frozen=True)
class LanguageCounts:
    """Loss sum and token counts of next-token prediction.

    Attributes
    ----------
    loss
        Sum of the target tokens' cross-entropies in nats.
    tokens
        Number of target tokens.
    correct
        Target tokens that were the most probable ones.
    samples
        Number of texts.
    """

    loss: float = 0.0
    tokens: int = 0
    correct: int = 0
    samples: int = 0

    @classmethod
    def from_dict(cls, value: Any) -> LanguageCounts:
        """Read what ``to_dict`` wrote on the other side of a wire.

        Raises
        ------
        ProtocolError
            When it is not valid counts.
        """
        table = read_table(value, "loss", "tokens", "correct", "samples")
        tokens, correct, samples = (
            read_count(table[name], name) for name in ("tokens", "correct", "samples")
        )
        if correct > tokens or samples > tokens:
            raise ProtocolError(
                f"{correct} correct tokens and {samples} samples cannot come from {tokens} tokens"
            )
        return cls(read_loss(table["loss"], tokens), tokens, correct, samples)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "loss": self.loss,
            "tokens": self.tokens,
            "correct": self.correct,
            "samples": self.samples,
        }

    def __add__(self, other: LanguageCounts) -> LanguageCounts:
        """Return the counts of both sets of texts."""
        return LanguageCounts(
            self.loss + other.loss,
            self.tokens + other.tokens,
            self.correct + other.correct,
            self.samples + other.samples,
        )

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss; infinite where that exceeds what a float holds."""
        try:
            return math.exp(self.loss / self.tokens)
        except OverflowError:
            return math.inf

    def metrics(self) -> tuple[Metric, ...]:
        """Return perplexity (the metric of the task), mean loss and next-token accuracy.

        Raises
        ------
        FedloraError
            When there is no token.
        """
        _require_some(self.tokens)
        return (
            Metric("perplexity", self.perplexity, False),
            Metric("loss", self.loss / self.tokens, False),
            Metric("token_accuracy", self.correct / self.tokens, True),
        )


def read_table(value: Any, *names: str) -> Mapping[str, Any]:
    """Return counts that have exactly these fields; raises ``ProtocolError``."""
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise ProtocolError(f"counts need exactly the fields {', '.join(names)}")
    return value


def read_count(value: Any, name: str) -> int:
    """Return a whole number from 0; raises ``ProtocolError``."""
    right = isinstance(value, int) and not isinstance(value, bool)
    if not right or not 0 <= value <= _LARGEST_COUNT:
        raise ProtocolError(f"{name} has {str(value)[:40]!r}, which is no count")
    return int(value)


def _real(value: Any, name: str) -> float:
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not right or not abs(value) <= _LARGEST_LOSS:
        raise ProtocolError(f"{name} has {str(value)[:40]!r}, which is no sum with noise")
    return float(value)


def read_loss(value: Any, count: int) -> float:
    """Return a finite sum from 0, which is 0 of nothing; raises ``ProtocolError``."""
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not right or not 0 <= value <= _LARGEST_LOSS or (count == 0 and value != 0):
        raise ProtocolError(f"{str(value)[:40]!r} is no loss sum of {count} terms")
    return float(value)


def _require_some(count: int) -> None:
    if count == 0:
        raise FedloraError(
            "nothing was evaluated, so there is no metric; raise data.holdout or set data.test"
        )
