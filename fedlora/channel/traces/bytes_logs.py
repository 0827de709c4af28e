"""Logs of bytes that came since the line before: HSDPA (Norway) and 4G (Ghent).

Riiser, Vigmostad, Griwodz, Halvorsen: Commute path bandwidth traces from 3G networks (MMSys 2013);
van der Hooft and others: HTTP/2-based adaptive streaming of HEVC video over 4G/LTE networks (IEEE
Communications Letters 20(11), 2016).
"""

from __future__ import annotations

from pathlib import Path

from fedlora.channel.state import RATE_MAX_BPS
from fedlora.channel.traces.text import number_rows
from fedlora.channel.traces.track import Recording, spans
from fedlora.errors import FedloraError

_COLUMNS = ("unix time", "milliseconds", "latitude", "longitude", "bytes", "milliseconds since")
_FIRST_MS = 1e11
"""A unix time above is in milliseconds: in seconds it would lie in the year 5138."""
_SLACK_MS = 100.0
"""By how much clock and time since the line before may differ, beside half of the latter."""


def fits_hsdpa(text: str) -> bool:
    """Tell whether rows have six numbers of which the first is a unix time in seconds."""
    return _six(text) and float(text.split(maxsplit=1)[0]) < _FIRST_MS


def fits_ghent(text: str) -> bool:
    """Tell whether rows have six numbers of which the first is a unix time in milliseconds."""
    return _six(text) and float(text.split(maxsplit=1)[0]) >= _FIRST_MS


def _six(text: str) -> bool:
    first = next((row.split() for row in text.splitlines() if row.strip()), [])
    try:
        return len(first) == len(_COLUMNS) and all(float(cell) == float(cell) for cell in first)
    except ValueError:
        return False


def read_hsdpa(path: Path, text: str) -> Recording:
    """Read a log whose first column is in seconds; see ``_read``."""
    return _read(path, text, "hsdpa", 1000.0)


def read_ghent(path: Path, text: str) -> Recording:
    """Read a log whose first column is in milliseconds; see ``_read``."""
    return _read(path, text, "ghent", 1.0)


def _read(path: Path, text: str, name: str, unit_ms: float) -> Recording:
    """Read rates, each of the time before its line.

    Raises
    ------
    FedloraError
        When a value is none, bytes came in no time, clocks go backwards, or they contradict each
        other.
    """
    lines: list[int] = []
    durations_s: list[float] = []
    rates_bps: list[float] = []
    gap_s: list[float] = []
    before: list[float] = []
    for line, row in number_rows(path, text, _COLUMNS):
        _, _, _, _, size, since_ms = row
        if size < 0 or since_ms <= 0:
            raise FedloraError(
                f"trace {path} line {line} has {size:g} bytes in {since_ms:g} ms; mend it or leave "
                "the line out"
            )
        span_ms = _span_ms(path, line, before, row, unit_ms) if before else since_ms
        rate_bps = 8000 * size / since_ms
        if rate_bps > RATE_MAX_BPS:
            raise FedloraError(
                f"trace {path} line {line} has {size:g} bytes in {since_ms:g} ms, more than any "
                "link carries; mend it"
            )
        lines.append(line)
        durations_s.append(span_ms / 1000)
        rates_bps.append(rate_bps)
        apart_ms = span_ms - since_ms
        gap_s.append(apart_ms / 1000 if apart_ms > since_ms / 2 + _SLACK_MS else 0.0)
        before = row
    track = spans(path, lines, durations_s, rates_bps, gap_s)
    return Recording(path, name, "bytes in milliseconds", {None: track})


def _span_ms(path: Path, line: int, before: list[float], row: list[float], unit_ms: float) -> float:
    """Return the time since the line before by the steady clock, if the others agree."""
    clock_ms, unix_ms, since_ms = row[1] - before[1], (row[0] - before[0]) * unit_ms, row[5]
    if clock_ms <= 0:
        raise FedloraError(
            f"trace {path} line {line} has {row[1]:.12g} ms after {before[1]:.12g}; cut the file "
            "there"
        )
    if since_ms > 1.5 * clock_ms + _SLACK_MS:
        raise FedloraError(
            f"trace {path} line {line} counts bytes of {since_ms:g} ms, but its clock has gone on "
            f"by {clock_ms:g} ms; mend it or leave the line out"
        )
    if unix_ms > 100 * (clock_ms + 1000) or clock_ms > 100 * (unix_ms + unit_ms):
        raise FedloraError(
            f"trace {path} line {line} has a unix time of {row[0]:.13g}, {unix_ms:g} ms after the "
            f"line before, but its clock has gone on by {clock_ms:g} ms; check "
            "channel.trace_format: hsdpa has seconds there, ghent milliseconds"
        )
    return clock_ms
