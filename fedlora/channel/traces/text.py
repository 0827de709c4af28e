"""The text of a recording, and its cells as numbers; what cannot be read is told with its line."""

from __future__ import annotations

import csv
import math
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedlora.checks import number
from fedlora.errors import FedloraError

_MOST_BYTES = 256 << 20
_EXCESS = "cells beyond the header"
TIME_LIMIT_S = 1e12  # beyond it a float has no milliseconds


def read_text(path: Path, key: str = "channel.options.path") -> str:
    """Return the text of a file, without a mark of its byte order.

    Raises
    ------
    FedloraError
        When it cannot be read, is no file, too large, or no UTF-8 text.
    """
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise FedloraError(f"{key}: cannot read trace {path}: it is no file; check the path")
        if status.st_size > _MOST_BYTES:
            raise FedloraError(
                f"{key}: trace {path} has {status.st_size >> 20} MiB; cut out what is to be "
                f"replayed, at most {_MOST_BYTES >> 20} MiB"
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FedloraError(f"{key}: cannot read trace {path}: {reason}; check the path") from None


def value(path: Path, line: int, name: str, cell: str | None, low: float, high: float) -> float:
    """Return a cell as a number within limits.

    Raises
    ------
    FedloraError
        When it is none.
    """
    try:
        read = number(name, float("" if "_" in (cell or "_") else cell or ""))
    except (ValueError, TypeError):
        raise FedloraError(
            f"trace {path} line {line} has {cell!r:.80} for {name}; write a finite number, "
            "a trace has no empty cells"
        ) from None
    return number(f"{name} in line {line} of trace {path}", read, low, high)


def table(
    path: Path, text: str, header: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yield line and cells of each row of comma-separated values.

    Parameters
    ----------
    path, text
        The file.
    header
        Names of the columns; by default the first line has them.

    Raises
    ------
    FedloraError
        When it cannot be read, a column is there twice, or a row has more cells than the header.
    """
    reader = csv.DictReader(text.splitlines(), header, restkey=_EXCESS, skipinitialspace=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise FedloraError(f"trace {path} has the column {twice[0]!r:.80} twice; remove one")
        for cells in reader:
            if _EXCESS in cells:
                raise FedloraError(
                    f"trace {path} line {reader.line_num} has more cells than the header; write "
                    "one for each column"
                )
            yield reader.line_num, cells
    except csv.Error as error:
        raise FedloraError(
            f"trace {path} line {reader.line_num + 1} cannot be read ({error}); write numbers "
            "between commas"
        ) from None


def columns(text: str) -> list[str]:
    """Return the names in the first line of comma-separated values."""
    try:
        return [name.strip() for name in next(csv.reader(text.splitlines()[:1]), [])]
    except csv.Error:
        return [name.strip() for name in text.partition("\n")[0].split(",")]


def number_rows(path: Path, text: str, names: Sequence[str]) -> Iterator[tuple[int, list[float]]]:
    """Yield line and numbers of each row of values between blanks; blank lines have none.

    Raises
    ------
    FedloraError
        When a row has another number of cells, or one is no number.
    """
    for line, row in enumerate(text.splitlines(), 1):
        cells = row.split()
        if not cells:
            continue
        if len(cells) != len(names):
            raise FedloraError(
                f"trace {path} line {line} has {len(cells)} cells for {', '.join(names)}; write "
                f"{len(names)} between blanks"
            )
        yield (
            line,
            [
                value(path, line, name, cell, -math.inf, math.inf)
                for name, cell in zip(names, cells, strict=True)
            ],
        )
