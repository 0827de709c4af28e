"""A refusal is one sentence that names a key or quotes a value, and a mend."""

from __future__ import annotations

import re

_MOST = 500  # characters
_NAMED = re.compile(r"[a-z]+\.[a-z_]+|--[a-z]|'[^']*'|\d|^(name|seed|python_path) is ")


def refusal(message: str) -> str:
    """Return what is wrong with the text of a refusal, or nothing."""
    if "\n" in message:
        return "the refusal has line breaks"
    if len(message) > _MOST:
        return f"the refusal is {len(message)} characters long"
    if re.search(r"[.!?] [A-Z]", message):
        return "the refusal is more than one sentence"
    if not _NAMED.search(message):
        return "the refusal names neither key nor value"
    return "" if re.search(r"[;,]", message) else "the refusal names no mend"
