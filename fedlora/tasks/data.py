"""Reading records: rows of named strings, from plain files or Hugging Face datasets.

Plain files need the standard library alone, so that an edge process stays small.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from fedlora.config import DataConfig
from fedlora.errors import FedloraError, shown
from fedlora.split import resolve_path
from fedlora.tasks.columns import NoValue, as_cells, require_column
from fedlora.tasks.delimited import csv_records, lines, tsv_records
from fedlora.unicode import require_unicode

_HUB = "hub:"
_KINDS = (".csv", ".tsv", ".jsonl", ".txt")
_SHOWN_CHARACTERS = 40
_log = logging.getLogger(__name__)


def load_records(
    config: DataConfig,
    which: Literal["train", "test"],
    *,
    labelled: bool = False,
    texts: bool = True,
) -> list[dict[str, str]]:
    r"""Read the training or test records of a scenario.

    - ``.csv``: quoted as spreadsheets do, line breaks inside quotes included; ``.tsv``: split at
      tabs, without quoting. The first line names the columns, unless ``data.columns`` does.
    - ``.jsonl``: an object a line; numbers, true and false become strings as JSON writes them, null
      counts as absent.
    - ``.txt``: records between ``data.record_separator``. ``data.pattern`` must match a whole
      record (its ``.`` also matches line breaks); others are left out, with a warning.
    - A folder written by ``Dataset.save_to_disk``, or ``hub:NAME``, also ``hub:NAME:CONFIG`` and
      ``hub:NAME@SPLIT``. Without ``@SPLIT`` the split is ``data.split`` for training and ``test``
      for testing. Class numbers become class names; columns of lists and objects are left out, but
      for ``data.messages``.

    Parameters
    ----------
    config
        The scenario's ``data`` section.
    which
        ``train`` or ``test``.
    labelled
        Whether the column ``data.label`` is used as well.
    texts
        Whether what is learnt is in columns of texts, which every record must have.

    Returns
    -------
    list of dict
        One dictionary from column to value for each record, with a text in ``data.text``, or what
        stands in its place.

    Raises
    ------
    FedloraError
        When the data cannot be read, is empty, or lacks what is learnt.
    """
    path, key = getattr(config, which), f"data.{which}"
    if not path:
        raise FedloraError(
            f"{key} is empty; name a file of records, such as requests.csv, or a saved dataset"
        )
    read = config.columns_read if texts else {}
    used = read | ({config.label: "data.label"} if labelled else {})
    rows = _records(path, key, config, which, used)
    records = list(islice(rows, config.max_rows or None))
    if not records:
        raise FedloraError(f"{key} is {path!r}, which holds no records; name a file with some")
    for column, name in read.items():
        require_column(records, column, name, path)
    return records


def _records(
    path: str, key: str, config: DataConfig, which: str, used: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    split = config.split if which == "train" else "test"
    if path.startswith(_HUB):
        return _rows(_from_hub(path, key, split), path, used)
    place = resolve_path(path, "data", key)
    if place.is_dir():
        return _rows(_from_folder(place, key, split), path, used)
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
        record = as_cells(value)
        for cell in (*record, *record.values()):
            require_unicode(cell, f"{place} line {number}", "mend or remove it")
        yield record


def _text_records(text: str, place: Path, config: DataConfig) -> Iterator[dict[str, str]]:
    if not config.record_separator:
        raise FedloraError("data.record_separator is empty; name what separates records")
    pattern = _compile(config.pattern) if config.pattern else None
    pieces = text.replace("\r\n", "\n").split(config.record_separator)
    records = [piece.strip("\n") for piece in pieces if piece.strip()]
    if pattern is None:
        if config.form != "text":
            raise FedloraError(
                f"{place} holds texts, and data.{config.form} is "
                f"{shown(getattr(config, config.form))}; name groups of that name in "
                "data.pattern, or write the records as .jsonl"
            )
        yield from ({config.text: record} for record in records)
        return
    matches = [match for match in map(pattern.fullmatch, records) if match]
    if records and not matches:
        raise FedloraError(
            f"data.pattern {shown(config.pattern)} matches none of the {len(records)} records of "
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
        raise FedloraError(
            f"data.pattern {shown(pattern)} is no regular expression ({error})"
        ) from None
    if not compiled.groupindex:
        raise FedloraError(
            f"data.pattern {shown(pattern)} names no column; write groups as (?P<text>.+)"
        )
    return compiled


def _from_folder(place: Path, key: str, split: str) -> Any:
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
    return dataset


def _from_hub(path: str, key: str, split: str) -> Any:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    name, _, chosen = path.removeprefix(_HUB).partition("@")
    name, _, subset = name.partition(":")
    try:
        return datasets.load_dataset(name, subset or None, split=chosen or split)
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        raise FedloraError(
            f"{key} is {path!r}, which cannot be loaded from the Hugging Face hub "
            f"({_first_line(error)}); check the name, the split and the network"
        ) from None


def _rows(dataset: Any, source: str, used: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield the columns that hold text, numbers or classes; a class of -1 means it is withheld."""
    from datasets import ClassLabel, Value

    features = dataset.features
    said = [n for n, key in used.items() if key == "data.messages" and n in features]
    plain = [name for name, kind in features.items() if isinstance(kind, (ClassLabel, Value))]
    for name, key in used.items():
        if name in features and name not in (
            *plain,
            *said,
        ):  # told as of a file that holds such values
            kind = _kind(features[name])
            require_column([{name: NoValue.of(None, kind)}], name, key, source)
    classes = {name: features[name] for name in plain if isinstance(features[name], ClassLabel)}
    for row in dataset.select_columns([*plain, *(n for n in said if n not in plain)]):
        for name, feature in classes.items():
            value = row[name]
            row[name] = feature.int2str(value) if value is not None and value >= 0 else None
        yield as_cells(row)


def _kind(feature: Any) -> str:
    name = "dict" if isinstance(feature, dict) else type(feature).__name__
    kinds = {"dict": "an object", "List": "a list", "LargeList": "a list", "Sequence": "a list"}
    return kinds.get(name, f"a value of the kind {name}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
