"""Reading records: rows of named strings, from plain files or Hugging Face datasets.

Plain files need the standard library alone, so that an edge process stays small.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from fedlora.config import DataConfig
from fedlora.errors import FedloraError
from fedlora.split import resolve_path
from fedlora.tasks.delimited import csv_records, lines, tsv_records
from fedlora.unicode import require_unicode

Record = Mapping[str, str]

_HUB = "hub:"
_KINDS = (".csv", ".tsv", ".jsonl", ".txt")
_SHOWN_CHARACTERS = 40
_log = logging.getLogger(__name__)


def load_records(config: DataConfig, which: Literal["train", "test"]) -> list[dict[str, str]]:
    r"""Read the training or test records of a scenario.

    - ``.csv``: quoted as spreadsheets do, line breaks inside quotes included; ``.tsv``: split at
      tabs, without quoting. The first line names the columns, unless ``data.columns`` does.
    - ``.jsonl``: an object a line; numbers become strings, null counts as absent.
    - ``.txt``: records between ``data.record_separator``. ``data.pattern`` must match a whole
      record (its ``.`` also matches line breaks); others are left out, with a warning.
    - A folder written by ``Dataset.save_to_disk``, or ``hub:NAME``, also ``hub:NAME:CONFIG`` and
      ``hub:NAME@SPLIT``. Without ``@SPLIT`` the split is ``data.split`` for training and ``test``
      for testing. Class numbers become class names.

    Parameters
    ----------
    config
        The scenario's ``data`` section.
    which
        ``train`` or ``test``.

    Returns
    -------
    list of dict
        One dictionary from column to value for each record, with at least the column ``data.text``.

    Raises
    ------
    FedloraError
        When the data cannot be read, is empty, or lacks the text column.
    """
    path, key = getattr(config, which), f"data.{which}"
    records = list(
        islice(_records(path, key, config, which), min(config.max_rows, sys.maxsize) or None)
    )
    if not records:
        raise FedloraError(f"{key} is {path!r}, which holds no records; name a file with some")
    require_column(records, config.text, "data.text", path)
    return records


def require_column(records: Sequence[Record], column: str, key: str, source: str = "") -> None:
    """Check that every record has a column.

    Parameters
    ----------
    records
        The records.
    column, key
        Name of the column and the scenario key that names it.
    source
        Where the records came from, for the error message.

    Raises
    ------
    FedloraError
        When a record lacks it; the message names the columns there are.
    """
    for number, record in enumerate(records, 1):
        if column not in record:
            where = f"record {number}" + (f" of {source}" if source else "")
            if any(column in other for other in records):
                raise FedloraError(f"{where} has no {column!r} (null or absent); mend or remove it")
            near = difflib.get_close_matches(column, record, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"set {key}, or name the columns in data.columns if there is no header line"
            )
            there = ", ".join(repr(name[:_SHOWN_CHARACTERS]) for name in record)
            raise FedloraError(f"{key} is {column!r}, but {where} has columns {there}; {hint}")


def _records(path: str, key: str, config: DataConfig, which: str) -> Iterator[dict[str, str]]:
    if path.startswith(_HUB):
        return _from_hub(path, key, config.split if which == "train" else "test")
    place = resolve_path(path, "data", key)
    if place.is_dir():
        return _from_folder(place, key, config.split if which == "train" else "test")
    kind = place.suffix.lower()
    if kind not in _KINDS:  # before it is read: what is no text at all would blame its encoding
        raise FedloraError(
            f"{key} is {path!r}, whose kind {place.suffix!r} is not known; use "
            f"{', '.join(_KINDS)}, or a folder written by Dataset.save_to_disk, as in "
            "datasets.Dataset.from_parquet(FILE).save_to_disk(FOLDER)"
        )
    text = _read_text(place, key)
    match kind:
        case ".csv":
            return csv_records(text, config, place)
        case ".tsv":
            return tsv_records(text, config, place)
        case ".jsonl":
            return _json_lines(text, place)
        case _:
            return _text_records(text, place, config)


def _read_text(place: Path, key: str) -> str:
    try:
        content = place.read_bytes()
    except OSError as error:
        raise FedloraError(f"cannot read {key} {place}: {error.strerror}; mend that") from None
    try:
        return content.decode("utf-8-sig")  # spreadsheets begin the file with a byte-order mark
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FedloraError(
            f"{place} line {line} has byte 0x{content[error.start]:02x}, which is not UTF-8; save "
            "the file as UTF-8"
        ) from None


def _json_lines(text: str, place: Path) -> Iterator[dict[str, str]]:
    for number, line in lines(text):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FedloraError(
                f"{place} line {number} is not valid JSON ({error}); mend or remove it"
            ) from None
        if not isinstance(value, dict):
            raise FedloraError(
                f"{place} line {number} holds no object; write it as {{...}} with a key a column"
            )
        record = _strings(value)
        for cell in (*record, *record.values()):
            require_unicode(cell, f"{place} line {number}", "mend or remove it")
        yield record


def _strings(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in row.items()
        if value is not None
    }


def _text_records(text: str, place: Path, config: DataConfig) -> Iterator[dict[str, str]]:
    if not config.record_separator:
        raise FedloraError("data.record_separator is empty; name what separates records")
    pattern = _compile(config.pattern) if config.pattern else None
    pieces = text.replace("\r\n", "\n").split(config.record_separator)
    records = [piece.strip("\n") for piece in pieces if piece.strip()]
    if pattern is None:
        yield from ({config.text: record} for record in records)
        return
    matches = [match for match in map(pattern.fullmatch, records) if match]
    if records and not matches:
        raise FedloraError(
            f"data.pattern {config.pattern!r} matches none of the {len(records)} records of "
            f"{place}; the first is {records[0][:_SHOWN_CHARACTERS]!r}"
        )
    if len(matches) < len(records):
        left_out = len(records) - len(matches)
        _log.warning(
            "%d of %d records of %s do not match data.pattern and are left out",
            left_out,
            len(records),
            place,
        )
    yield from (match.groupdict(default="") for match in matches)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise FedloraError(f"data.pattern {pattern!r} is no regular expression ({error})") from None
    if not compiled.groupindex:
        raise FedloraError(
            f"data.pattern {pattern!r} names no column; write groups as (?P<text>.+)"
        )
    return compiled


def _from_folder(place: Path, key: str, split: str) -> Iterator[dict[str, str]]:
    import datasets

    try:
        dataset = datasets.load_from_disk(str(place))
    except (OSError, ValueError, KeyError) as error:
        raise FedloraError(
            f"{key} is the folder {place}, which is no saved dataset ({_first_line(error)}); write "
            "it with Dataset.save_to_disk, or name a file"
        ) from None
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise FedloraError(
                f"{key} is the folder {place}, which has no split {split!r} but "
                f"{', '.join(dataset)}; name the folder of one split, such as "
                f"{place / next(iter(dataset))}"
            )
        dataset = dataset[split]
    return _rows(dataset)


def _from_hub(path: str, key: str, split: str) -> Iterator[dict[str, str]]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    name, _, chosen = path.removeprefix(_HUB).partition("@")
    name, _, subset = name.partition(":")
    try:
        dataset = datasets.load_dataset(name, subset or None, split=chosen or split)
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        raise FedloraError(
            f"{key} is {path!r}, which cannot be loaded from the Hugging Face hub "
            f"({_first_line(error)}); check the name, the split and the network"
        ) from None
    return _rows(dataset)


def _rows(dataset: Any) -> Iterator[dict[str, str]]:
    """Yield the columns that hold text, numbers or classes; a class of -1 means it is withheld."""
    from datasets import ClassLabel, Value

    features = dataset.features
    plain = [name for name, kind in features.items() if isinstance(kind, (ClassLabel, Value))]
    classes = {name: features[name] for name in plain if isinstance(features[name], ClassLabel)}
    for row in dataset.select_columns(plain):
        for name, kind in classes.items():
            value = row[name]
            row[name] = kind.int2str(value) if value is not None and value >= 0 else None
        yield _strings(row)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
