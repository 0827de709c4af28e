"""Conversations with a house, of two requests each, for the scenario ``chat-smollm2``."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from itertools import islice

_PACKAGE = "simulations.quickstart"
_CONVERSATIONS = 360


def conversations() -> str:
    """Return the content of ``conversations.jsonl``: one conversation a line, with its dialect."""
    text = (files(_PACKAGE) / "requests.csv").read_text(encoding="utf-8")
    by_dialect: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(text.splitlines()):
        by_dialect.setdefault(row["dialect"], []).append(row)
    each = _CONVERSATIONS // len(by_dialect)
    lines = []
    for dialect, rows in sorted(by_dialect.items()):
        for pair in islice(zip(rows[::2], rows[1::2], strict=False), each):
            messages = []
            for row in pair:
                done = f"Done: {row['intent'].replace('_', ' ')}."
                messages += [
                    {"role": "user", "content": row["text"]},
                    {"role": "assistant", "content": done},
                ]
            lines.append(json.dumps({"messages": messages, "dialect": dialect}) + "\n")
    return "".join(lines)


if __name__ == "__main__":
    print(conversations(), end="")
