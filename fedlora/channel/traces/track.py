"""What a recording says of one link: rows that hold for a while, or packets that come through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TypeAlias

import numpy as np

from fedlora.errors import FedloraError

GAP_FACTOR = 3.0
"""A row that lasts longer than so many usual ones has a gap behind it."""
PACKET_BITS = 8 * 1504
"""Of a delivery opportunity (mahimahi, ``src/frontend/link_queue.hh``: ``PACKET_SIZE``)."""


@dataclass(frozen=True)
class Track:
    """Rows of a link, each in force until the next; the last one until the period ends.

    Attributes
    ----------
    lines
        Line of the file, from 1, that each row stands in.
    start_s
        When each row begins, in seconds after the first.
    period_s
        When all begins anew, in seconds.
    values
        By name (``snr_db``, ``rate_bps``, each also with ``up_`` or ``down_``, ``bandwidth_hz``,
        and ``upload_bps``, which counts where the file stands for an uplink), one for each row;
        NaN where the file marks it as missing.
    idle
        Rows in which nobody sent, as far as the file tells beyond a rate of 0.
    gap_s
        How much of each row the file says nothing of, in seconds.
    together
        Rows that share the time stamp of the one before.
    """

    lines: np.ndarray
    start_s: np.ndarray
    period_s: float
    values: Mapping[str, np.ndarray]
    idle: np.ndarray
    gap_s: np.ndarray
    together: int = 0

    @property
    def duration_s(self) -> np.ndarray:
        """How long each row is in force, in seconds."""
        return np.diff(self.start_s, append=self.period_s)


@dataclass(frozen=True)
class Packets:
    """Times at which a packet of 1504 bytes may pass; the period ends with the last of them.

    Attributes
    ----------
    time_ms
        In milliseconds, not decreasing; the last is above 0.
    """

    time_ms: np.ndarray

    @property
    def period_s(self) -> float:
        """When all begins anew, in seconds."""
        return float(self.time_ms[-1]) / 1000


Link: TypeAlias = Track | Packets


@dataclass(frozen=True)
class Recording:
    """A file that was read.

    Attributes
    ----------
    path
        The file.
    format
        What it is written in.
    unit
        What the file states values in.
    links
        By client; ``None`` for one that all clients share.
    """

    path: Path
    format: str
    unit: str
    links: Mapping[int | None, Link]


def held(
    path: Path,
    column: str,
    lines: Sequence[int],
    times: Sequence[float | Fraction],
    values: Mapping[str, Sequence[float]],
    *,
    idle: Sequence[bool] | None = None,
    together: int = 0,
) -> Track:
    """Return rows that are each in force until the next, and the last as long as is usual.

    Parameters
    ----------
    path, column
        The file, and what it calls its time.
    lines, times, values
        One for each row; times in seconds.
    idle, together
        See ``Track``.

    Raises
    ------
    FedloraError
        When times do not rise.
    """
    # Exact, as what the period is wrong by adds up from one repetition to the next.
    written = [t if isinstance(t, Fraction) else Fraction(repr(float(t))) for t in times]
    steps = [after - before for before, after in pairwise(written)]
    for at, step in enumerate(steps, 1):
        if step <= 0:
            raise FedloraError(
                f"trace {path} line {lines[at]} has {column} {float(times[at]):.12g} after "
                f"{float(times[at - 1]):.12g}; sort the rows of each client by {column}, each time "
                "once"
            )
    usual = median(steps) if steps else Fraction(1)
    lasting = np.array([float(step) for step in [*steps, usual]])
    return Track(
        np.array(lines),
        np.array([float(time - written[0]) for time in written]),
        float(written[-1] - written[0] + usual),
        {name: np.array(column, dtype=float) for name, column in values.items()},
        np.array([False] * len(lines) if idle is None else idle, dtype=bool),
        np.where(lasting > GAP_FACTOR * float(usual), lasting, 0.0),
        together,
    )


def spans(
    path: Path,
    lines: Sequence[int],
    durations_s: Sequence[float],
    rates_bps: Sequence[float],
    gap_s: Sequence[float] | None = None,
) -> Track:
    """Return rows of one rate each that follow one another for the durations that they have.

    Raises
    ------
    FedloraError
        When there is none.
    """
    if not lines:
        raise FedloraError(f"trace {path} has no span of time between its rows; add rows")
    ends_s = np.cumsum(np.array(durations_s, dtype=float))
    return Track(
        np.array(lines),
        np.append(0.0, ends_s[:-1]),
        float(ends_s[-1]),
        {"rate_bps": np.array(rates_bps, dtype=float)},
        np.zeros(len(lines), dtype=bool),
        np.zeros(len(lines)) if gap_s is None else np.array(gap_s, dtype=float),
    )
