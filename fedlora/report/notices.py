"""Warnings on the screen and in the report, and not in the log alone."""

from __future__ import annotations

import contextlib
import logging

from fedlora.errors import FedloraError, printable
from fedlora.report.run_folder import RunFolder


class NoticeHandler(logging.Handler):
    """Makes each warning an event of the run, which its followers and its report show.

    Errors are not among them: the event that ends the run says what failed.

    Parameters
    ----------
    folder
        The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(logging.WARNING)
        self._folder = folder
        self.addFilter(lambda record: record.levelno == logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Append the event; where it cannot be written, the next round's record reports why."""
        with contextlib.suppress(FedloraError):
            text = record.getMessage()
            text = printable(text, len(text))
            self._folder.append_event("message", level="warning", text=text)
