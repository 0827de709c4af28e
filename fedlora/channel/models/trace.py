"""Replay of a recorded channel."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from fedlora.channel.models.base import ChannelModel, Link
from fedlora.checks import bandwidth, number
from fedlora.config import SNR_LIMIT_DB, ChannelConfig
from fedlora.errors import FedloraError

_COLUMNS = ("time_s", "client", "snr_db", "up_snr_db", "down_snr_db", "bandwidth_hz")
_GAP_FACTOR = 3.0
_LIMITS = {"time_s": 1e12}  # beyond it a float has no milliseconds
_EXCESS = "cells beyond the header"


@dataclass(frozen=True)
class _Series:
    """A client's rows; ``time_s`` counts from the first of them."""

    time_s: np.ndarray
    up_snr_db: np.ndarray
    down_snr_db: np.ndarray
    bandwidth_hz: np.ndarray | None
    period_s: float

    def row(self, time_s: float) -> int:
        """Return the row in force at a time; the series repeats when it ends."""
        # A block begins with its row, and the series with its period, although a float may put
        # either a little before; its error grows with the time.
        slack_s = 1e-9 + 1e-15 * time_s
        within_s = math.fmod(time_s + slack_s, self.period_s)
        return int(np.searchsorted(self.time_s, within_s, side="right")) - 1


class TraceChannel(ChannelModel):
    """Values of a CSV file, each held until the next, repeated when the file ends.

    The file has a header line and the columns ``time_s``, ``snr_db`` (or ``up_snr_db`` and
    ``down_snr_db``) and optionally ``client`` (an index; without it all clients share the trace)
    and ``bandwidth_hz`` (without it the scenario's). Time starts with the client's first row.

    Parameters
    ----------
    config, seed
        See ``ChannelModel``.
    path
        The file.
    """

    def __init__(self, config: ChannelConfig, seed: int, *, path: str = "") -> None:
        super().__init__(config, seed)
        if not path or not isinstance(path, str):
            raise FedloraError(
                "channel.options.path is empty; name the CSV file that trace replays"
            )
        if "\0" in path:
            raise FedloraError(f"channel.options.path is {path!r}; name the CSV file to replay")
        self._path = path
        self._series = _read(Path(path), config.up_snr_offset_db)

    def sample(self, client: int, block: int) -> Link:
        """Return the link of a client in a fading block."""
        series = self._series.get(client, self._series.get(None))
        if series is None:
            have = ", ".join(str(name) for name in sorted(k for k in self._series if k is not None))
            raise FedloraError(
                f"trace {self._path} has no rows for client {client}, only for {have}; "
                "add them, or leave out the column client so that all clients share the trace"
            )
        row = series.row(self.time_s(block))
        bandwidth_hz = self.bandwidth_hz(client, block)
        if series.bandwidth_hz is not None:
            bandwidth_hz = float(series.bandwidth_hz[row])
        return Link(float(series.up_snr_db[row]), float(series.down_snr_db[row]), bandwidth_hz)


def _read(path: Path, up_snr_offset_db: float) -> dict[int | None, _Series]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FedloraError(
            f"channel.options.path: cannot read trace {path}: {reason}; check the path"
        ) from None
    reader = csv.DictReader(text.splitlines(), restkey=_EXCESS, skipinitialspace=True)
    try:
        groups = _by_client(path, reader)
    except csv.Error as error:
        raise FedloraError(
            f"trace {path} line {reader.line_num + 1} cannot be read ({error}); write numbers "
            "between commas"
        ) from None
    if not groups:
        raise FedloraError(f"trace {path} has a header but no rows; add at least one")
    return {client: _series(path, rows, up_snr_offset_db) for client, rows in groups.items()}


def _by_client(
    path: Path, reader: csv.DictReader[str]
) -> dict[int | None, list[tuple[int, dict[str, float]]]]:
    """Return line number and values of each client's rows."""
    header = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = header
    _check_header(path, header)
    groups: dict[int | None, list[tuple[int, dict[str, float]]]] = {}
    for cells in reader:
        values = _row(path, reader.line_num, cells)
        client = _client(path, reader.line_num, values.pop("client", None))
        groups.setdefault(client, []).append((reader.line_num, values))
    return groups


def _check_header(path: Path, header: list[str]) -> None:
    unknown = [name for name in header if name not in _COLUMNS]
    if unknown:
        raise FedloraError(
            f"trace {path} has the unknown column {unknown[0]!r:.80}; known: {', '.join(_COLUMNS)}"
        )
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise FedloraError(f"trace {path} has the column {twice[0]!r} twice; remove one")
    both = {"up_snr_db", "down_snr_db"} <= set(header)
    if "time_s" not in header or not ("snr_db" in header or both):
        raise FedloraError(
            f"trace {path} has the columns {', '.join(header) or 'of an empty file'}; it needs "
            "time_s, and snr_db or both up_snr_db and down_snr_db"
        )


def _row(path: Path, line: int, cells: dict[str, str | None]) -> dict[str, float]:
    if _EXCESS in cells:
        raise FedloraError(
            f"trace {path} line {line} has more cells than the header; write one for each column"
        )
    values = {}
    for name, cell in cells.items():
        limit = SNR_LIMIT_DB if name.endswith("snr_db") else _LIMITS.get(name, math.inf)
        try:
            value = number(name, float(cell or ""))
        except (ValueError, TypeError):
            raise FedloraError(
                f"trace {path} line {line} has {cell!r:.80} for {name}; write a finite number, "
                "a trace has no empty cells"
            ) from None
        values[name] = number(f"{name} in line {line} of trace {path}", value, -limit, limit)
    return values


def _client(path: Path, line: int, value: float | None) -> int | None:
    if value is None:
        return None
    if value < 0 or value != int(value):
        raise FedloraError(
            f"trace {path} line {line} has client {value:g}; write an index, 0 or more"
        )
    return int(value)


def _series(
    path: Path, rows: list[tuple[int, dict[str, float]]], up_snr_offset_db: float
) -> _Series:
    lines = [line for line, _ in rows]
    column = {name: np.array([values[name] for _, values in rows]) for name in rows[0][1]}
    time_s = column["time_s"]
    steps_s = np.diff(time_s)
    if np.any(steps_s <= 0):
        at = int(np.argmax(steps_s <= 0)) + 1
        raise FedloraError(
            f"trace {path} line {lines[at]} has time_s {time_s[at]:g} after {time_s[at - 1]:g}; "
            "sort the rows of each client by time_s, each time once"
        )
    usual_s = float(np.median(steps_s)) if len(steps_s) else 1.0
    if np.any(steps_s > _GAP_FACTOR * usual_s):
        at = int(np.argmax(steps_s > _GAP_FACTOR * usual_s))
        raise FedloraError(
            f"trace {path} has a gap of {steps_s[at]:g} s after line {lines[at]} where rows are "
            f"usually {usual_s:g} s apart; fill it in or cut the trace there"
        )
    for value in column.get("bandwidth_hz", ()):
        bandwidth(f"a bandwidth_hz of trace {path}", float(value))
    down_snr_db = column.get("down_snr_db", column.get("snr_db"))
    up_snr_db = column.get("up_snr_db")
    if up_snr_db is None:
        up_snr_db = column["snr_db"] + up_snr_offset_db
    assert down_snr_db is not None
    # Exact, as what the period is wrong by adds up from one repetition to the next.
    written = [Fraction(repr(float(value))) for value in time_s]
    usual = median(b - a for a, b in pairwise(written)) if len(written) > 1 else Fraction(1)
    offset_s = np.array([float(value - written[0]) for value in written])
    period_s = float(written[-1] - written[0] + usual)
    return _Series(offset_s, up_snr_db, down_snr_db, column.get("bandwidth_hz"), period_s)
