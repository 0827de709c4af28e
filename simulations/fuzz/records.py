"""Data files of random scenarios: texts of known words with class and group, in many formats."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.fuzz.models import SEPARATOR, WORDS

FORMATS = ("csv", "tsv", "jsonl", "txt", "txt-pattern", "csv-noheader")
CLASSES = ("plain", "unicode", "long", "many", "number")
FORMS = {
    "messages": {"data.messages": "messages"},
    "prompt": {"data.prompt": "prompt", "data.completion": "completion"},
}
"""What a record may be in place of a text, and the keys that say so."""
GROUPS = ("g1", "g2", "g3", "g4", "g5")
_PATTERN = "(?P<group>[^|]*)\\|(?P<label>[^:]*):\\n(?P<text>.*)"

Row = Mapping[str, Any]


def make_records(case: Mapping[str, Any], rows: int, seed: int) -> list[Row]:
    """Return the records of a case.

    Parameters
    ----------
    case
        ``_classes`` says what labels look like, ``_words`` how many words a text has at most, and
        ``_form`` whether it is another of ``FORMS``.
    rows, seed
        How many, and what they follow from.
    """
    rng = random.Random(seed)
    found: list[Row] = []
    for row in range(rows):
        words = [f"w{rng.choice(WORDS)}" for _ in range(rng.randint(1, case["_words"]))]
        words.insert(rng.randint(0, len(words)), SEPARATOR)
        label, group = _label(case["_classes"], row, rng), rng.choice(GROUPS)
        found.append({**_said(words, case.get("_form")), "label": label, "group": group})
    return found


def _said(words: list[str], form: str | None) -> Row:
    """Return the columns of what is learnt: a text, or what stands around its separator."""
    if form is None:
        return {"text": " ".join(words)}
    place = words.index(SEPARATOR)
    prompt, completion = (" ".join(part) or SEPARATOR for part in (words[:place], words[place:]))
    if form == "prompt":
        return {"prompt": prompt, "completion": completion}
    turns = [("system", "w6")] * (len(words) % 2) + [("user", prompt), ("assistant", completion)]
    turns += turns[-2:] * (len(words) % 3)
    return {"messages": [{"role": role, "content": said} for role, said in turns]}


def _label(kind: str, row: int, rng: random.Random) -> str:
    """Return a row's class."""
    choices = {
        "plain": ("A", "B", "C", "D"),
        "unicode": ("naïve", "日本語", "😀", "e\u0301", "é"),
        "long": ("A" * 300, "B" * 300),
        "many": (f"class {row}", f"class {row}"),
        "number": ("0", "1", "-1", "1.0"),
    }[kind]
    # the first rows have one class each, so that there is more than one
    return choices[row % len(choices)] if row < len(choices) else rng.choice(choices)


def write_records(folder: Path, stem: str, kind: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Write a data file; return its name under ``file``, and the keys that it needs.

    Parameters
    ----------
    folder, stem
        Where, and the name without its ending.
    kind
        One of ``FORMATS``.
    rows
        The records.
    """
    name = f"{stem}.{kind.partition('-')[0]}"
    keys: dict[str, Any] = {}
    if kind == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif kind == "txt":
        text = "".join(row["text"] + "\n" for row in rows)
    elif kind == "txt-pattern":
        text = "\n\n".join(f"{r['group']}|{r['label']}:\n{r['text']}" for r in rows) + "\n"
        keys = {"data.record_separator": "\n\n", "data.pattern": _PATTERN}
    else:
        header = kind != "csv-noheader"
        text = _table(rows, "\t" if kind == "tsv" else ",", header=header)
        keys = {} if header else {"data.columns": list(rows[0])}
    (folder / name).write_text(text, encoding="utf-8")
    return {"file": name, **keys}


def _table(rows: Sequence[Row], delimiter: str, *, header: bool) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    if header:
        writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return out.getvalue()
