"""Tests of Measuring Broadband America (FCC): ``curr_webget``, ``curr_httpgetmt``, ``-postmt``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from fedlora.channel.state import RATE_MAX_BPS
from fedlora.channel.traces.text import columns, table, value
from fedlora.channel.traces.track import Link, Recording, spans
from fedlora.errors import FedloraError

_FIRST = ("unit_id", "dtime", "target", "address", "fetch_time", "bytes_total", "bytes_sec")
"""The columns that the files begin with; later ones differ from kind to kind."""
_FORM = "%Y-%m-%d %H:%M:%S"


def fits(text: str) -> bool:
    """Tell whether the first line has the names of the columns, or such a test."""
    found = columns(text)
    return _named(found) or (
        len(found) >= len(_FIRST) and found[0].isdecimal() and _time(found[1]) is not None
    )


def _named(header: list[str]) -> bool:
    return {"unit_id", "dtime", "bytes_sec"} <= set(header)


def _time(cell: str) -> datetime | None:
    try:
        return datetime.strptime(cell.strip(), _FORM)
    except ValueError:
        return None


def read(path: Path, text: str, step_s: float) -> Recording:
    """Read bytes/s, a test on each line; each unit with each target is a client.

    They are numbered in the order of their first lines, and kept apart as Pensieve keeps them.

    Parameters
    ----------
    path, text
        The file.
    step_s
        How long a test stands for, in seconds; the file does not say.

    Raises
    ------
    FedloraError
        When a value is none, a test is there twice, time goes backwards, or ``step_s`` is 0.
    """
    if not step_s:
        raise FedloraError(
            f"trace {path} has a test of a link on each line and no duration; set "
            "channel.options.step_s to the seconds that each is to stand for, such as 5 as "
            "Pensieve has it"
        )
    found = columns(text)
    header = None
    if not _named(found):
        further = [f"column {at}" for at in range(len(_FIRST) + 1, len(found) + 1)]
        header = [*_FIRST, *further]
    tests: dict[tuple[str, str], list[tuple[int, float]]] = {}
    latest: dict[tuple[str, str], datetime] = {}
    for line, cells in table(path, text, header):
        unit, stamp = (cells["unit_id"] or "").strip(), _time(cells["dtime"] or "")
        if not unit or stamp is None:
            raise FedloraError(
                f"trace {path} line {line} has {cells['unit_id']!r:.40} for unit_id and "
                f"{cells['dtime']!r:.40} for dtime; write a unit and 2016-01-31 12:00:00"
            )
        link = (unit, (cells.get("target") or "").strip())
        if link in latest and stamp <= latest[link]:
            raise FedloraError(
                f"trace {path} line {line} has a test of unit {unit:.40} with {link[1]!r:.40} at "
                f"{stamp} after one at {latest[link]}; sort its lines by dtime, each test once"
            )
        latest[link] = stamp
        rate = value(path, line, "bytes_sec", cells["bytes_sec"], 0.0, RATE_MAX_BPS / 8)
        tests.setdefault(link, []).append((line, 8 * rate))
    links: dict[int | None, Link] = {
        client: spans(path, lines, [step_s] * len(lines), rates)
        for client, (lines, rates) in enumerate(
            tuple(zip(*rows, strict=True)) for rows in tests.values()
        )
    }
    if not links:
        raise FedloraError(f"trace {path} has a header but no rows; add at least one")
    return Recording(path, "fcc", "bytes/s", links)
