"""What the columns that a run uses must hold: a text, or a class, in every record."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fedlora.config import DataConfig
from fedlora.errors import FedloraError, shown

Record: TypeAlias = Mapping[str, Any]
"""Named values: strings where it was read from a file of texts."""

_CONVERSATION = (
    'a list such as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
)
_NEEDED = {
    "data.text": (
        "a text; write one there, or name a column of conversations in data.messages, with "
        'task.kind = "causal_lm"'
    ),
    "data.messages": f"{_CONVERSATION}; write it so in a .jsonl file",
    "data.prompt": "a text; write one there, or name whole conversations in data.messages",
    "data.completion": "a text; write one there, or name whole conversations in data.messages",
    "data.label": "a class; write one name or number there",
}
_TEXTS = ("data.text", "data.prompt", "data.completion")
_NEAR = 0.7  # of two names, beyond which one is taken for a slip of the other
_LIST = "a list"
_ANYTHING = "one value; write one there"


class NoValue(str):
    """JSON source of what is no text and no number.

    It is kept, as an owner's ledger knows a record by all of its columns.

    Attributes
    ----------
    kind
        What it is: ``a list``, ``an object``, ``bytes``, or empty where a number is none, as NaN.
    """

    __slots__ = ("kind",)

    kind: str

    @classmethod
    def of(cls, value: Any, kind: str) -> NoValue:
        """Return it for a value that JSON, or a saved dataset, holds."""
        made = cls(json.dumps(value, default=str))
        made.kind = kind
        return made


def as_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row's values as strings, such as 1.0 and true; null counts as absent."""
    return {name: _cell(value) for name, value in row.items() if value is not None}


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return NoValue.of(value, "")
    for kind, name in (((list, tuple), _LIST), (dict, "an object"), (bytes, "bytes")):
        if isinstance(value, kind):
            return NoValue.of(value, name)
    return json.dumps(value, default=str)


def label_of(record: Record, column: str) -> str | None:
    """Return a record's class; None where it has none."""
    return None if _lacks(record, column, "data.label") else str(record[column])


def _lacks(record: Record, column: str, key: str) -> bool:
    """Tell whether a record has no value that the key could mean; a text may be blank."""
    value = record.get(column)
    if key == "data.messages":
        return not (isinstance(value, NoValue) and value.kind == _LIST)
    if value is None or isinstance(value, NoValue):
        return True
    return not (value.strip() if key == "data.label" else value or key not in _TEXTS)


def require_column(records: Sequence[Record], column: str, key: str, source: str = "") -> None:
    """Check that every record has a value in a column.

    Parameters
    ----------
    records
        The records.
    column, key
        Name of the column and the scenario key that names it: ``data.text``, ``data.prompt`` and
        ``data.completion`` must not be empty, ``data.label`` not blank, and ``data.messages`` must
        be a list.
    source
        Where the records came from, for the error message.

    Raises
    ------
    FedloraError
        When a record lacks it, or holds something else there, such as a list for a text; the
        message names the first such record, how many there are, or which columns there are.
    """
    wrong = [number for number, record in enumerate(records) if _lacks(record, column, key)]
    if not wrong:
        return
    record = records[wrong[0]]
    where = f"record {wrong[0] + 1}" + (f" of {source}" if source else "")
    if column not in record and not any(column in other for other in records):
        raise _no_column(record, column, key, where)
    value = record.get(column)
    if value is not None and key == "data.messages" and not isinstance(value, NoValue):
        raise FedloraError(
            f"{where} has {shown(value)} in {column!r}, where {key} needs {_NEEDED[key]}"
        )
    if isinstance(value, NoValue) and value.kind:
        needed = _NEEDED.get(key, _ANYTHING)
        raise FedloraError(f"{where} has {value.kind} in {column!r}, where {key} needs {needed}")
    why = "null or absent" if value is None else str(value).strip() or "empty"
    more = f", and {len(wrong) - 1} more have none" if len(wrong) > 1 else ""
    them = "them" if more else "it"
    raise FedloraError(f"{where} has no {column!r} ({why}){more}; mend or remove {them}")


def label_column(config: DataConfig, *, labelled: bool) -> str:
    """Return the column of the class; empty for a task that has none.

    Raises
    ------
    FedloraError
        When the task has classes and no column is named.
    """
    if labelled and not config.label:
        raise FedloraError("data.label is empty; name the column that holds the class")
    return config.label if labelled else ""


def check_form(config: DataConfig, *, labelled: bool) -> None:
    """Refuse conversations, and prompts with completions, for a task of one class a text.

    Raises
    ------
    FedloraError
        When the task is such a one.
    """
    if labelled and config.form != "text":
        named = config.messages or config.prompt
        raise FedloraError(
            f"data.{config.form} is {shown(named)}, and the task has one class for each text; set "
            'task.kind to "causal_lm", or name the column of texts in data.text alone'
        )


def check_labels(labels: Sequence[str]) -> None:
    """Refuse ``task.labels`` with one class, as nothing can be learnt of it.

    Raises
    ------
    FedloraError
        When there is one.
    """
    if len(labels) == 1:
        raise FedloraError(
            f"task.labels names 1 class, {shown(labels[0])}; name two or more, or none to take "
            "those of the data"
        )


def class_names(records: Sequence[Record], config: DataConfig, source: str) -> list[str]:
    """Return the classes that occur in all training records, sorted.

    Raises
    ------
    FedloraError
        When there is one, so that nothing can be learnt.
    """
    names = sorted({record[config.label] for record in records})
    if len(names) == 1:
        first = "that data.max_rows takes " if config.max_rows else ""
        raise FedloraError(
            f"the data has 1 class, {shown(names[0])} in {config.label!r} of all {len(records)} "
            f"records {first}of {source}, so there is nothing to learn; add records of "
            "another, or name the right column in data.label"
        )
    return names


def _no_column(record: Record, column: str, key: str, where: str) -> FedloraError:
    near = difflib.get_close_matches(column, record, n=1, cutoff=_NEAR)
    hint = (
        f"did you mean {near[0]!r}? write one name in both"
        if near
        else f"set {key}, or name the columns in data.columns if there is no header line"
    )
    there = ", ".join(shown(name) for name in record)
    return FedloraError(f"{key} is {column!r}, but {where} has columns {there}; {hint}")
