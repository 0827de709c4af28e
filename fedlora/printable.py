"""Peers' text, made fit for a log line, an event, an exception and a terminal."""

from __future__ import annotations

import logging
from typing import Any

MOST_CHARACTERS = 300


def printable(text: Any, most: int = MOST_CHARACTERS) -> str:
    """Return at most so many characters of a peer's text without line breaks or control codes."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:most])


class LineFormatter(logging.Formatter):
    """Writes a record's message as one line, whatever got into it; tracebacks are our own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # of the base class
        """See ``logging.Formatter``."""
        record.message = printable(record.message, len(record.message))
        return super().formatMessage(record)
