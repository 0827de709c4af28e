"""What has left in a session so far, on disk before it leaves, so that a kill loses none of it.

One small file a session, ``tally-SESSION``, with two slots that are written in turn: one that is
torn leaves the other. The process of the session holds it; a file that nobody holds is of one that
was killed. It is not synced, so a power cut may lose the last seconds of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fedlora.errors import FedloraError
from fedlora.storage import explained, open_private

_PREFIX = "tally-"
_SLOT_BYTES = 2048
_NUMBER = "number"


class Tally:
    """The counts of one session; held by this process until it is closed.

    Parameters
    ----------
    folder
        Where its file is made.
    session
        Name of the session.

    Raises
    ------
    FedloraError
        When it cannot be written.
    """

    def __init__(self, folder: Path, session: str) -> None:
        self._path = folder / f"{_PREFIX}{session}"
        self._number = 0
        aside = folder / f".{self._path.name}.new"
        with explained(self._path):
            self._file = open_private(aside)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.write(b" " * (2 * _SLOT_BYTES))  # so that a disk that fills stops no run
            self._file.flush()
            # held before it has its name: whoever finds it free takes its session for killed
            aside.replace(self._path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Put a record in the place of the one before the last.

        Raises
        ------
        FedloraError
            When it is too long for its place, or cannot be written.
        """
        self._number += 1
        body = json.dumps({**record, _NUMBER: self._number}, separators=(",", ":")).encode()
        slot = b"%08x %s" % (zlib.crc32(body), body)
        if len(slot) > _SLOT_BYTES:
            raise FedloraError(f"what is to be counted has {len(slot)} bytes")
        place = self._number % 2 * _SLOT_BYTES
        with explained(self._path):
            os.pwrite(self._file.fileno(), slot.ljust(_SLOT_BYTES), place)

    def close(self) -> None:
        """Remove it, as its figures are in the audit file."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def going_on(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return what running sessions have counted, by session."""
    found = {}
    for session, path in _files(folder):
        with _open(path) as file:
            if file is not None and not _free(file):
                found[session] = _read(file)
    return found


def left_behind(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return what sessions had counted whose process was killed, by session."""
    found = {}
    for session, path in _files(folder):
        with _open(path) as file:
            if file is not None and _free(file):
                found[session] = _read(file)
    return found


def settle(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what ``left_behind`` returns, and remove each once it has been dealt with."""
    for session, path in _files(folder):
        with _open(path) as file:
            if file is not None and _free(file) and path.exists():
                yield session, _read(file)
                path.unlink(missing_ok=True)


def _files(folder: Path) -> list[tuple[str, Path]]:
    return [(p.name.removeprefix(_PREFIX), p) for p in sorted(folder.glob(f"{_PREFIX}*"))]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO | None]:
    """Open a file; None for one that was closed meanwhile."""
    try:
        file = path.open("rb")
    except OSError:
        yield None
        return
    with file:
        yield file


def _free(file: BinaryIO) -> bool:
    """Tell whether nobody else holds a file; then it is held until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: BinaryIO) -> Mapping[str, Any]:
    """Return the record that was written last, without its number; empty where there is none."""
    data = os.pread(file.fileno(), 2 * _SLOT_BYTES, 0)
    found: list[dict[str, Any]] = []
    for slot in (data[:_SLOT_BYTES], data[_SLOT_BYTES:]):
        checksum, _, body = slot.rstrip(b" ").partition(b" ")
        if checksum == b"%08x" % zlib.crc32(body):
            with contextlib.suppress(ValueError):
                found.append(json.loads(body))
    last = max(found, key=lambda record: record[_NUMBER], default={})
    return {name: value for name, value in last.items() if name != _NUMBER}
