"""Files that a crash leaves whole: replaced as a whole, or appended line by line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO

from fedlora.checks import finite
from fedlora.errors import FedloraError

_TRIES, _PAUSE_S = 10, 0.005
"""How often a file is to be held: who asks whether it is holds it for a moment, too."""


def replace_file(path: Path, data: bytes, *, sync: bool = True, private: bool = False) -> None:
    """Write a file aside and rename it into place: at any moment it is the old or the new one.

    Parameters
    ----------
    path
        The file; its folder is made if need be.
    data
        What it is to hold.
    sync
        Whether it is to survive a power cut too, from the return of this function on.
    private
        Whether nobody but this user may read it.

    Raises
    ------
    FedloraError
        When it cannot be written; an earlier file of that name stays as it was.
    """
    aside = path.with_name(f".{path.name}.part")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_private(aside) if private else aside.open("wb") as file:
                file.write(data)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        if sync:
            _sync_folder(path.parent)


def open_private(path: Path) -> BinaryIO:
    """Open a file for writing from its beginning that nobody but this user may read."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    file = os.fdopen(os.open(path, flags, 0o600), "wb")
    os.fchmod(file.fileno(), 0o600)  # where it was there before
    return file


def append_line(path: Path, record: Mapping[str, object], *, sync: bool) -> None:
    """Append a record as one line of JSON, behind what a crash may have left of another.

    Raises
    ------
    FedloraError
        When the disk is full or the file cannot be written; earlier lines stay.
    """
    line = json_line(record)
    with explained(path), path.open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"  # by a crash or a full disk
            line = b"\n" + line if torn else line
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if sync:
            os.fsync(file.fileno())


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the records from a byte offset on, and the offset to go on from.

    A line that is torn is left out; one that is still being written is left for the next call.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    records = []
    for line in data[:end].splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records, offset + end


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None when there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def json_line(value: object, indent: int | None = None) -> bytes:
    """Return a value as JSON and a line break, with null for what is not finite."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(_plain(value), allow_nan=False, indent=indent, separators=separators)
    return f"{text}\n".encode()


def lock_file(path: Path) -> BinaryIO | None:
    """Hold a file, which is made if need be, until what is returned is closed or its process ends.

    Returns
    -------
    BinaryIO or None
        The open file; None when another process, or another part of this one, holds it.
    """
    file = path.open("ab")
    for tries_left in reversed(range(_TRIES)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if tries_left:
                time.sleep(_PAUSE_S)
    file.close()
    return None


def is_locked(path: Path) -> bool:
    """Tell whether some process holds a file by ``lock_file``; nobody is kept out by asking."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def held_folder(path: Path, what: str) -> Iterator[None]:
    """Keep other processes out of a folder that there is.

    Parameters
    ----------
    path
        The folder.
    what
        Goes on in it, as the refusal calls it.

    Raises
    ------
    FedloraError
        When another process holds it, or nothing can be written there.
    """
    with held_file(path / ".lock", f"{what} is still going on in {path}"):
        yield


@contextlib.contextmanager
def held_file(lock: Path, what: str) -> Iterator[None]:
    """Keep other processes out by a file that is held.

    Parameters
    ----------
    lock
        The file; it is made if need be and stays.
    what
        The beginning of the refusal: what goes on, and where.

    Raises
    ------
    FedloraError
        When another process holds it, or it cannot be written.
    """
    with explained(lock):
        held = lock_file(lock)
    if held is None:
        raise FedloraError(f"{what}; wait for it, or give another --out")
    with held:
        yield


def check_folder(path: Path, key: str) -> None:
    """Refuse a folder that cannot be made or written to, before anything starts; make nothing.

    Parameters
    ----------
    path
        The folder.
    key
        The scenario's key that names it.

    Raises
    ------
    FedloraError
        When it is a file or lies in one, or its user may not write there.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise FedloraError(f"{key} is {str(path)!r}, and {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FedloraError(
            f"{key} is {str(path)!r}, and {there} cannot be written to; choose another folder"
        )


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise ``FedloraError`` with the mend where a file cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = "free some space; what was written before is kept"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            mend = "choose a folder that you may write to"
        else:
            mend = "choose another folder"
        raise FedloraError(f"cannot write {path}: {error.strerror}; {mend}") from None


def _plain(value: object) -> object:
    """Turn numpy scalars, tuples and mappings into JSON, and what is not finite into null."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return finite(value)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
