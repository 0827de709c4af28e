"""A log whose records take one line each, whatever got into them."""

from __future__ import annotations

import logging

from fedlora.errors import printable


class LineFormatter(logging.Formatter):
    """Writes a record's message as one line, whatever got into it; tracebacks are our own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # of the base class
        """See ``logging.Formatter``."""
        record.message = printable(record.message, len(record.message))
        return super().formatMessage(record)
