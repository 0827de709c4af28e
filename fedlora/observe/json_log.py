"""The log as JSON, one object a line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from fedlora.printable import printable


class JsonFormatter(logging.Formatter):
    """Writes ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, and any ``error``."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        message = record.getMessage()
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(message, len(message)),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
