"""Records of a csv or tsv file, whose first line or whose scenario names the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedlora.config import DataConfig
from fedlora.errors import FedloraError, shown

_SHOWN_CHARACTERS = 40
_MAX_CELL_CHARACTERS = 1 << 24  # of a csv; beyond, a quote was left open
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_OTHER_SEPARATORS = ";\t|,"


def csv_records(text: str, config: DataConfig, place: Path) -> Iterator[dict[str, str]]:
    """Yield the records of a csv text, quoted as spreadsheets do.

    Raises
    ------
    FedloraError
        When the quotes do not match, or a line has another number of fields than the header.
    """
    return _named(_csv_rows(text, place), config, place)


def tsv_records(text: str, config: DataConfig, place: Path) -> Iterator[dict[str, str]]:
    """Yield the records of a text that is split at tabs, without quoting.

    Raises
    ------
    FedloraError
        When a line has another number of fields than the header.
    """
    return _named(_tsv_rows(text), config, place)


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and content of the lines that are not blank.

    ``str.splitlines`` would also cut at characters such as U+2028 that occur inside texts.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _csv_rows(text: str, place: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_MAX_CELL_CHARACTERS)  # task.max_length cuts a long text, not this
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise FedloraError(
            f"{place} line {reader.line_num} is not valid csv ({error}); mend its quotes"
        ) from None


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines(text):
        yield number, line.split("\t")


def _named(
    rows: Iterable[tuple[int, list[str]]], config: DataConfig, place: Path
) -> Iterator[dict[str, str]]:
    rows = iter(rows)
    header = list(config.columns) or next((row for _, row in rows), [])
    if header != [config.text]:
        _check_separated(header, place)
    if len(set(header)) < len(header):
        raise FedloraError(f"{place} names a column twice in {shown(header)}; rename one")
    for number, row in rows:
        if len(row) != len(header):
            _check_separated(row, place)
            raise FedloraError(
                f"{place} line {number} has {len(row)} fields for {len(header)} columns; mend the "
                "line, or data.columns"
            )
        yield dict(zip(header, row, strict=True))


def _check_separated(fields: Sequence[str], place: Path) -> None:
    """Refuse a line that is one field, as another character than the expected one separates it."""
    expected = _SEPARATORS[place.suffix.lower()]
    for found in _OTHER_SEPARATORS:
        if len(fields) == 1 and found != expected and found in fields[0]:
            shown = fields[0][:_SHOWN_CHARACTERS]
            known = {separator: kind for kind, separator in _SEPARATORS.items()}
            rename = f", or name it {known[found]}" if found in known else ""
            raise FedloraError(
                f"{place} has the line {shown!r}, which {found!r} separates "
                f"where {place.suffix} expects {expected!r}; save it with {expected!r}{rename}"
            )
