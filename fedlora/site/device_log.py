"""A device's log for its owner: plain lines on the console, and in a file of their own.

Flower starts a ClientApp process anew for each message, and several of one device may write at
once: each line is appended as a whole by one call, and the file is held while it is looked at
whether it has to be rotated.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedlora.errors import printable
from fedlora.log_line import LineFormatter

NAME: Final = "device.log"
MOST_BYTES: Final = 1 << 20
KEPT: Final = 5
"""Files ``device.log.1`` (the last one) to ``device.log.5`` that are kept."""

_changing = threading.Lock()
_LINE = "%(asctime)s %(levelname)s {who}: %(message)s"


class DeviceLog(logging.Handler):
    """Appends lines to a device's log and rotates it.

    Parameters
    ----------
    folder
        Where the log is; made when the first line is written.
    most_bytes, kept
        When a file is rotated, and how many are kept beside it.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, kept: int = KEPT) -> None:
        super().__init__()
        self.path = folder / NAME
        self.thread = threading.get_ident()
        self.level_before = logging.NOTSET
        self._most_bytes, self._kept = most_bytes, kept
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record's line; where that fails say so once on the console."""
        try:
            self._append(f"{self.format(record)}\n".encode(errors="backslashreplace"))
            self._failed = False
        except OSError as error:
            if not self._failed:
                self._failed = True
                print(f"cannot write {self.path}: {error.strerror}", file=sys.stderr)

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self._hold()
        try:
            size = os.fstat(file).st_size
            if size and size + len(line) > self._most_bytes:
                self._rotate()
                os.close(file)
                file = self._open()
            os.write(file, line)
        finally:
            os.close(file)

    def _hold(self) -> int:
        """Return the file that has the log's name, held."""
        while True:
            file = self._open()
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file).st_ino == os.stat(self.path).st_ino:
                    return file
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # another process has just rotated it

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = os.open(self.path, flags, 0o600)
        os.fchmod(file, 0o600)
        return file

    def _rotate(self) -> None:
        names = [self.path, *(Path(f"{self.path}.{n}") for n in range(1, self._kept + 1))]
        for newer, older in reversed(list(itertools.pairwise(names))):
            if newer.exists():
                newer.replace(older)


@contextmanager
def device_log(folder: Path, who: str) -> Iterator[None]:
    """Write what this process logs of fedlora to a device's log and to the console.

    Parameters
    ----------
    folder
        The device's ``state`` folder.
    who
        Whose lines these are, such as ``client 3``.
    """
    logger = logging.getLogger("fedlora")
    if any(handler.thread == threading.get_ident() for handler in _open_logs(logger)):
        yield  # of the message that is being answered
        return
    own, console = DeviceLog(folder), logging.StreamHandler()
    who = printable(f"fedlora {who}, process {os.getpid()}").replace("%", "%%")
    # The journal has the time of each line already.
    plain = _LINE.removeprefix("%(asctime)s ") if "JOURNAL_STREAM" in os.environ else _LINE
    own.setFormatter(_formatter(_LINE.format(who=who)))
    console.setFormatter(_formatter(plain.format(who=who)))
    with _changing:
        others = _open_logs(logger)
        own.level_before = others[0].level_before if others else logger.level
        logger.setLevel(own.level_before or logging.INFO)
        logger.addHandler(own)
        logger.addHandler(console)
    try:
        yield
    finally:
        with _changing:
            logger.removeHandler(own)
            logger.removeHandler(console)
            if not _open_logs(logger):
                logger.setLevel(own.level_before)


def _open_logs(logger: logging.Logger) -> list[DeviceLog]:
    return [handler for handler in logger.handlers if isinstance(handler, DeviceLog)]


def _formatter(line: str) -> logging.Formatter:
    formatter = LineFormatter(line, "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    return formatter
