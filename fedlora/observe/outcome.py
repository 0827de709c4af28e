"""What a run's folder keeps of how it goes and ends: its log, and the last event."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from fedlora.blame import naming_plugins
from fedlora.errors import FedloraError
from fedlora.report import NoticeHandler, RunFolder

log = logging.getLogger("fedlora.server")


class JsonFormatter(logging.Formatter):
    """Writes ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, and any ``error``."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False)
        # JSON itself would leave line separators and control codes above ASCII as they are.
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


@contextmanager
def logging_to(folder: RunFolder, *, json_lines: bool) -> Iterator[None]:
    """Write the log of a run into its folder, and what users must be told into its events.

    Parameters
    ----------
    folder
        The run's folder.
    json_lines
        Whether there is a ``log.jsonl``, too.
    """
    logger = logging.getLogger("fedlora")
    handlers = [folder.log_handler(), NoticeHandler(folder)]
    if json_lines:
        handlers.append(folder.log_handler(formatter=JsonFormatter()))
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


@contextmanager
def outcome_in(folder: RunFolder) -> Iterator[None]:
    """Note how the run ended, so that whoever follows its events is told."""
    try:
        with naming_plugins():
            yield
    except FedloraError as error:
        log.error("%s", error)
        folder.append_event("done", status="failed", text=str(error))
        raise
    except BaseException as error:
        log.exception("the run failed")
        folder.append_event("done", status="failed", text=f"{type(error).__name__}: {error}")
        raise
    log.info("the run is finished")
    folder.append_event("done", status="finished", text="")
