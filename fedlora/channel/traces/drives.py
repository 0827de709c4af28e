"""Irish drive tests: what G-NetTrack Pro logged every second in 4G and 5G networks.

Raca, Quinlan, Zahran, Sreenan: Beyond throughput, a 4G LTE dataset with channel and context metrics
(MMSys 2018); Raca, Leahy, Sreenan, Quinlan: Beyond throughput, the next generation (MMSys 2020).
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime
from fractions import Fraction
from pathlib import Path

from fedlora.channel.state import RATE_MAX_BPS
from fedlora.channel.traces.text import columns, table, value
from fedlora.channel.traces.track import Recording, held
from fedlora.config import SNR_LIMIT_DB
from fedlora.errors import FedloraError

_NEEDED = ("Timestamp", "NetworkMode", "SNR", "DL_bitrate", "UL_bitrate")
_FORM = "%Y.%m.%d_%H.%M.%S"
_BEGIN = datetime(1970, 1, 1)
_MISSING = "-"
_MOST_KBPS = RATE_MAX_BPS / 1000


def fits(text: str) -> bool:
    """Tell whether the first line names the logger's columns."""
    return set(_NEEDED) <= set(columns(text))


def read(path: Path, text: str) -> Recording:
    """Read SNR in dB and bit rates in kbit/s, where ``-`` marks what is missing.

    Stamps are whole seconds. Rows of one second share it in equal parts.

    Raises
    ------
    FedloraError
        When a column lacks, a value is none, or time goes backwards.
    """
    if lacking := [name for name in _NEEDED if name not in columns(text)]:
        raise FedloraError(
            f"trace {path} has no column {lacking[0]}, as the Irish drive tests have; check "
            "channel.trace_format"
        )
    lines: list[int] = []
    seconds: list[int] = []
    snr_db: list[float] = []
    down_bps: list[float] = []
    up_bps: list[float] = []
    idle: list[bool] = []
    for line, cells in table(path, text):
        lines.append(line)
        seconds.append(_seconds(path, line, cells["Timestamp"] or ""))
        snr_db.append(_value(path, line, "SNR", cells, -SNR_LIMIT_DB, SNR_LIMIT_DB))
        down_bps.append(1000 * _value(path, line, "DL_bitrate", cells, 0.0, _MOST_KBPS))
        up_bps.append(1000 * _value(path, line, "UL_bitrate", cells, 0.0, _MOST_KBPS))
        idle.append((cells.get("State") or "").strip() == "I")
    if not lines:
        raise FedloraError(f"trace {path} has a header but no rows; add at least one")
    times, together = _shared(path, lines, seconds)
    values = {"snr_db": snr_db, "rate_bps": down_bps, "upload_bps": up_bps}
    track = held(path, "Timestamp", lines, times, values, idle=idle, together=together)
    return Recording(path, "irish", "dB, kbit/s", {None: track})


def _seconds(path: Path, line: int, cell: str) -> int:
    try:
        stamp = datetime.strptime(cell.strip(), _FORM)
    except ValueError:
        raise FedloraError(
            f"trace {path} line {line} has {cell!r:.80} for Timestamp; write it as "
            "2019.12.14_10.16.30"
        ) from None
    return int((stamp - _BEGIN).total_seconds())


def _value(
    path: Path, line: int, name: str, cells: dict[str, str | None], low: float, high: float
) -> float:
    cell = cells[name]
    if cell is not None and cell.strip() == _MISSING:
        return math.nan
    return value(path, line, name, cell, low, high)


def _shared(path: Path, lines: list[int], seconds: list[int]) -> tuple[list[Fraction], int]:
    """Return times at which rows of one second have equal parts of it, and how many share one."""
    for at in range(1, len(seconds)):
        if seconds[at] < seconds[at - 1]:
            raise FedloraError(
                f"trace {path} line {lines[at]} lies {seconds[at - 1] - seconds[at]} s before the "
                "line above it; cut the file there, or sort its rows by Timestamp"
            )
    rows = Counter(seconds)
    told: Counter[int] = Counter()
    times = []
    for second in seconds:
        times.append(second + Fraction(told[second], rows[second]))
        told[second] += 1
    return times, len(seconds) - len(rows)
