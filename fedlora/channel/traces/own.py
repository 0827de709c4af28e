"""The form of fedlora's own: a header line, and values that hold until the next row."""

from __future__ import annotations

from pathlib import Path

from fedlora.channel.state import RATE_MAX_BPS
from fedlora.channel.traces.text import TIME_LIMIT_S, columns, table, value
from fedlora.channel.traces.track import Recording, Track, held
from fedlora.checks import BANDWIDTH_MAX_HZ, BANDWIDTH_MIN_HZ
from fedlora.config import SNR_LIMIT_DB
from fedlora.errors import FedloraError

_LIMITS = {
    "time_s": (-TIME_LIMIT_S, TIME_LIMIT_S),
    "client": (-TIME_LIMIT_S, TIME_LIMIT_S),
    "snr_db": (-SNR_LIMIT_DB, SNR_LIMIT_DB),
    "up_snr_db": (-SNR_LIMIT_DB, SNR_LIMIT_DB),
    "down_snr_db": (-SNR_LIMIT_DB, SNR_LIMIT_DB),
    "rate_bps": (0.0, RATE_MAX_BPS),
    "up_rate_bps": (0.0, RATE_MAX_BPS),
    "down_rate_bps": (0.0, RATE_MAX_BPS),
    "bandwidth_hz": (BANDWIDTH_MIN_HZ, BANDWIDTH_MAX_HZ),
}


def fits(text: str) -> bool:
    """Tell whether the first line names columns of this form."""
    return not text.strip() or bool(_LIMITS.keys() & set(columns(text)))


def read(path: Path, text: str) -> Recording:
    """Read ``time_s`` and SNRs in dB or rates in bit/s, at will by client and with bandwidths.

    Raises
    ------
    FedloraError
        When a column is unknown or lacks, a value is none, or times do not rise.
    """
    _check_header(path, columns(text))
    groups: dict[int | None, list[tuple[int, dict[str, float]]]] = {}
    for line, cells in table(path, text):
        values = {name: value(path, line, name, cells[name], *_LIMITS[name]) for name in cells}
        client = _client(path, line, values.pop("client", None))
        groups.setdefault(client, []).append((line, values))
    if not groups:
        raise FedloraError(f"trace {path} has a header but no rows; add at least one")
    links = {client: _track(path, rows) for client, rows in groups.items()}
    return Recording(path, "fedlora", "dB or bit/s", links)


def _check_header(path: Path, header: list[str]) -> None:
    unknown = [name for name in header if name not in _LIMITS]
    if unknown:
        raise FedloraError(
            f"trace {path} has the unknown column {unknown[0]!r:.80}; known: {', '.join(_LIMITS)}"
        )
    whole = [
        kind
        for kind in ("snr_db", "rate_bps")
        if kind in header or {f"up_{kind}", f"down_{kind}"} <= set(header)
    ]
    if "time_s" not in header or not whole:
        raise FedloraError(
            f"trace {path} has the columns {', '.join(header) or 'of an empty file'}; it needs "
            "time_s, and snr_db or both up_snr_db and down_snr_db, or rate_bps likewise"
        )


def _client(path: Path, line: int, number: float | None) -> int | None:
    if number is None:
        return None
    if number < 0 or number != int(number):
        raise FedloraError(
            f"trace {path} line {line} has client {number:g}; write an index, 0 or more"
        )
    return int(number)


def _track(path: Path, rows: list[tuple[int, dict[str, float]]]) -> Track:
    lines, values = zip(*rows, strict=True)
    named = {name: [row[name] for row in values] for name in values[0]}
    return held(path, "time_s", lines, named.pop("time_s"), named)
