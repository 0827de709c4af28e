"""Peers' text, made fit for a log line, an event, an exception and a terminal."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

MOST_CHARACTERS = 300


def printable(text: Any, most: int = MOST_CHARACTERS) -> str:
    """Return at most so many characters of a peer's text without line breaks or control codes."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:most])


def described(error: BaseException) -> str:
    """Return an exception's type, place and text in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception of a stranger's, too
        text = "its text cannot be had"
    text = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
    return f"{type(error).__name__} at {Path(place.filename).name}, line {place.lineno}: {text}"


class LineFormatter(logging.Formatter):
    """Writes a record's message as one line, whatever got into it; tracebacks are our own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # of the base class
        """See ``logging.Formatter``."""
        record.message = printable(record.message, len(record.message))
        return super().formatMessage(record)
