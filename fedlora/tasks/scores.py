"""Histograms of a classifier's scores, from which areas under ROC curves follow.

A score is the log-odds of a class against all others. Its histogram has bins of equal width, so
that histograms of several clients add up; what a bin hides bounds how far the area may be off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedlora.errors import ProtocolError

BINS = 128
_WIDTH = 0.25  # of a bin in nats of log-odds; the first and the last take all that is beyond
_MOST = 2**53


@dataclass(frozen=True)
class Area:
    """The area under one class's ROC curve, one against the rest.

    Attributes
    ----------
    value
        Area, where scores of one bin count as equal; 0.5 is chance.
    resolution
        How far it may be from the area of the scores themselves.
    """

    value: float
    resolution: float


@dataclass(frozen=True)
class ScoreCounts:
    """Rows by class, and by bin of their score for that class.

    Attributes
    ----------
    own
        Rows of the class, shape (classes, ``BINS``).
    rest
        All other rows.
    """

    own: tuple[tuple[int, ...], ...]
    rest: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, logits: torch.Tensor, classes: Sequence[int]) -> ScoreCounts:
        """Count rows.

        Parameters
        ----------
        logits
            Shape (rows, classes).
        classes
            Each row's class; one below 0 is of none of them.
        """
        number = logits.shape[1]
        logits = logits.double()
        others = torch.stack(
            [torch.cat([logits[:, :k], logits[:, k + 1 :]], 1).logsumexp(1) for k in range(number)],
            1,
        )
        odds = (logits - others).nan_to_num(0.0)
        bins = (odds / _WIDTH + BINS / 2).floor().clamp(0, BINS - 1).long()
        own = torch.zeros(number, BINS, dtype=torch.long)
        rest = torch.zeros_like(own)
        truth = torch.as_tensor(list(classes))
        for k in range(number):
            is_own = truth == k
            own[k] = torch.bincount(bins[is_own, k], minlength=BINS)
            rest[k] = torch.bincount(bins[~is_own, k], minlength=BINS)
        return cls(tuple(map(tuple, own.tolist())), tuple(map(tuple, rest.tolist())))

    @classmethod
    def from_dict(cls, value: Any, classes: int, rows: int) -> ScoreCounts:
        """Read what ``to_dict`` wrote on the other side of a wire.

        Raises
        ------
        ProtocolError
            When it is not the histograms of so many classes and rows.
        """
        if not isinstance(value, Mapping) or set(value) != {"own", "rest"}:
            raise ProtocolError("histograms of scores need exactly the fields own and rest")
        own, rest = (_histograms(value[name], classes, name) for name in ("own", "rest"))
        if any(sum(a) + sum(b) != rows for a, b in zip(own, rest, strict=True)):
            raise ProtocolError(f"its histograms of scores are not of the {rows} rows it evaluated")
        if sum(map(sum, own)) > rows:
            raise ProtocolError("its histograms of scores have rows of more than one class")
        return cls(own, rest)

    def to_dict(self) -> dict[str, Any]:
        """Return the histograms as JSON values."""
        return {name: [list(row) for row in getattr(self, name)] for name in ("own", "rest")}

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        """Return the histograms of both sets of rows."""
        return ScoreCounts(_added(self.own, other.own), _added(self.rest, other.rest))

    def area(self, k: int) -> Area | None:
        """Return the area of a class; None where it has no rows, or all rows."""
        own, rest = self.own[k], self.rest[k]
        pairs = sum(own) * sum(rest)
        if not pairs:
            return None
        below, right, tied = 0, 0, 0
        for a, b in zip(own, rest, strict=True):
            right += a * below
            tied += a * b
            below += b
        return Area((right + tied / 2) / pairs, tied / 2 / pairs)


def _added(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(x + y for x, y in zip(mine, theirs, strict=True))
        for mine, theirs in zip(a, b, strict=True)
    )


def _histograms(value: Any, classes: int, name: str) -> tuple[tuple[int, ...], ...]:
    right = isinstance(value, list) and len(value) == classes
    if not right or not all(isinstance(row, list) and len(row) == BINS for row in value):
        raise ProtocolError(f"{name} is no {classes} x {BINS} table of counts")
    for row in value:
        for item in row:
            if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item <= _MOST:
                raise ProtocolError(f"{name} has {str(item)[:40]!r}, which is no count")
    return tuple(tuple(row) for row in value)
