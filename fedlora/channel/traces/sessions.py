"""Rates of video sessions in two columns: Pensieve's cooked form, and Oboe's.

Mao, Netravali, Alizadeh (SIGCOMM 2017); Akhtar and others (SIGCOMM 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from statistics import median

from fedlora.channel.state import RATE_MAX_BPS
from fedlora.channel.traces.text import TIME_LIMIT_S, number_rows
from fedlora.channel.traces.track import GAP_FACTOR, Recording, spans
from fedlora.errors import FedloraError

_STEPS_S = (0.01, 60.0)
_CHUNKS_MS = (100.0, 600_000.0)


def fits_pensieve(text: str) -> bool:
    """Tell whether there are two columns, of which the first rises by steps of a few seconds."""
    rows = _pairs(text)
    steps = [after[0] - before[0] for before, after in pairwise(rows)]
    return bool(steps) and min(steps) > 0 and _STEPS_S[0] <= median(steps) <= _STEPS_S[1]


def fits_oboe(text: str) -> bool:
    """Tell whether there are two columns in pairs of equal rates some hundred ms apart or more."""
    rows = _pairs(text)
    chunks = list(zip(rows[::2], rows[1::2], strict=False))
    if not chunks or len(rows) % 2 or any(begin[1] != end[1] for begin, end in chunks):
        return False
    return _CHUNKS_MS[0] <= median(end[0] - begin[0] for begin, end in chunks) <= _CHUNKS_MS[1]


def _pairs(text: str) -> list[tuple[float, float]]:
    """Return rows of two numbers each; empty where a row has anything else."""
    found = []
    for row in text.splitlines():
        cells = row.split()
        if not cells:
            continue
        try:
            at, rate = map(float, cells)
        except ValueError:
            return []
        found.append((at, rate))
    return found


def read_pensieve(path: Path, text: str) -> Recording:
    """Read seconds and Mbit/s, each rate of the time up to its row.

    So Pensieve replays it (``sim/env.py``): the first row only begins the time, and after the last
    all begins anew.

    Raises
    ------
    FedloraError
        When a value is none, or times do not rise.
    """
    rows = list(number_rows(path, text, ("seconds", "Mbit/s")))
    durations_s = []
    for (_, before), (line, row) in pairwise(rows):
        durations_s.append(_rising(path, line, before[0], row[0], "s", 1.0))
    lines = [line for line, _ in rows[1:]]
    rates_bps = [_rate(path, line, row[1], "Mbit/s", 1e6) for line, row in rows][1:]
    track = spans(path, lines, durations_s, rates_bps)
    return Recording(path, "pensieve", "Mbit/s", {None: track})


def read_oboe(path: Path, text: str) -> Recording:
    """Read milliseconds and kbit/s in pairs of rows, the begin and the end of a chunk.

    Between two chunks the rate goes on a straight line, as Oboe's README proposes; here it is the
    mean of both, which carries as many bits.

    Raises
    ------
    FedloraError
        When a value is none, rows are not in pairs, or times do not rise.
    """
    rows = list(number_rows(path, text, ("milliseconds", "kbit/s")))
    chunks = [_chunk(path, *pair) for pair in zip_longest(rows[::2], rows[1::2])]
    parts = [(chunks[0].lines[0], chunks[0].duration_s, chunks[0].rate_bps, 0.0)] if chunks else []
    for before, chunk in pairwise(chunks):
        apart_s = _rising(
            path, chunk.lines[0], before.stop_ms, chunk.start_ms, "ms", 1e-3, least=0.0
        )
        between_bps = (before.rate_bps + chunk.rate_bps) / 2
        parts.append((chunk.lines[0], apart_s, between_bps, apart_s))
        parts.append((chunk.lines[1], chunk.duration_s, chunk.rate_bps, 0.0))
    parts = [part for part in parts if part[1]]  # chunks that follow at once
    usual_s = median(chunk.duration_s for chunk in chunks) if chunks else 0.0
    gap_s = [apart_s if apart_s > GAP_FACTOR * usual_s else 0.0 for *_, apart_s in parts]
    lines = [line for line, *_ in parts]
    track = spans(path, lines, [part[1] for part in parts], [part[2] for part in parts], gap_s)
    return Recording(path, "oboe", "kbit/s", {None: track})


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a video: its two lines, its time and its rate."""

    lines: tuple[int, int]
    start_ms: float
    stop_ms: float
    duration_s: float
    rate_bps: float


def _chunk(
    path: Path, begin: tuple[int, list[float]], end: tuple[int, list[float]] | None
) -> _Chunk:
    line, (start_ms, rate) = begin
    if end is None or end[1][1] != rate:
        other = "nothing" if end is None else f"{end[1][1]:.12g} kbit/s"
        raise FedloraError(
            f"trace {path} line {line} has {rate:.12g} kbit/s, and {other} is in the next row; "
            "Oboe writes each chunk's rate twice, at its begin and its end"
        )
    last, (stop_ms, _) = end
    duration_s = _rising(path, last, start_ms, stop_ms, "ms", 1e-3)
    rate_bps = _rate(path, line, rate, "kbit/s", 1e3)
    return _Chunk((line, last), start_ms, stop_ms, duration_s, rate_bps)


def _rising(
    path: Path,
    line: int,
    before: float,
    now: float,
    unit: str,
    seconds: float,
    least: float | None = None,
) -> float:
    """Return a step of time in seconds; it is above 0, or at least ``least``."""
    late = now <= before if least is None else now < before
    if late or max(abs(now), abs(before)) * seconds > TIME_LIMIT_S:
        raise FedloraError(
            f"trace {path} line {line} has {now:.12g} {unit} after {before:.12g}; sort its rows, "
            "each time once"
        )
    return (now - before) * seconds


def _rate(path: Path, line: int, rate: float, unit: str, factor: float) -> float:
    if not 0 <= rate * factor <= RATE_MAX_BPS:
        raise FedloraError(
            f"trace {path} line {line} has {rate:.12g} {unit}; write a rate from 0 to "
            f"{RATE_MAX_BPS / factor:g}"
        )
    return rate * factor
