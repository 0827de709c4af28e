"""The audit file of a device: one JSON object a line, which is appended and never changed.

Each line holds under ``after`` the digest of the line before it, so that one that was changed, put
in or taken out is found; not that lines at the end are gone. What a crash or a full disk tore stays
as it is, and the line behind it vouches for it. Several processes append to one file; each holds it
for the moment that takes.

Events, each with ``event``, ``time`` (UTC), ``session``, ``client`` and ``run``:

``asked``
    A server invites the device: ``name`` of the run, ``scenario`` (SHA-256 of its text), ``server``
    and ``wants``, see ``clients.owner.wishes``.
``refused``
    ``kind`` of ``fedlora.reasons``, and its numbers. No words: those may quote records.
``accepted``
    ``data`` and how its records are used: ``train``, ``held_out``, ``left_out``; the owner's
    ``limit``; ``ledger``, see ``clients.owner.diary``.
``round``
    ``round`` that has ended, its ``seconds``, ``samples`` since the run's start, bytes that
    ``left`` since the session's start by kind, ``ledger``.
``ended``
    ``how``: ``finished``, or a kind of ``fedlora.reasons``; ``left``, ``ledger``.
``text``
    The device begins to write a text with a server's blocks: ``server``, tokens of the ``prompt``.
``text_over``
    ``how`` that ended, ``tokens`` that were sent, bytes that ``left``.
``interrupted``
    Written by a later process for one that was killed: ``left``, and the ``round`` it was in.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fedlora.errors import FedloraError
from fedlora.storage import explained, json_line

NAME: Final = "audit.jsonl"
ASKED: Final = "asked"
REFUSED: Final = "refused"
ACCEPTED: Final = "accepted"
ROUND: Final = "round"
ENDED: Final = "ended"
INTERRUPTED: Final = "interrupted"
TEXT: Final = "text"
TEXT_OVER: Final = "text_over"

_AFTER = "after"
_DIGITS = 16
_TAIL_BYTES = 1 << 16  # far more than a line and what may be torn behind it


@dataclass(frozen=True)
class Audit:
    """An audit file as it was read.

    Attributes
    ----------
    events
        Its lines, in order.
    torn
        Lines that a crash or a full disk tore; no event of theirs is known.
    """

    events: Sequence[Mapping[str, Any]]
    torn: int


def now() -> str:
    """Return the time as events have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def append(path: Path, record: Mapping[str, object]) -> None:
    """Append an event and sync it to disk; nobody but this user may read the file.

    Raises
    ------
    FedloraError
        When the disk is full or the file cannot be written; earlier lines stay.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        with _locked(os.open(path, flags, 0o600), fcntl.LOCK_EX) as file:
            os.fchmod(file, 0o600)
            tail = _tail(file)
            chain = _digest(_unvouched(tail))
            line = json_line({**record, _AFTER: chain})
            line = b"\n" + line if tail and not tail.endswith(b"\n") else line
            if os.write(file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(file)


def read(path: Path) -> Audit:
    """Read an audit file, and check that each line follows on the one before.

    Raises
    ------
    FedloraError
        When there is none, or it was changed.
    """
    try:
        with _locked(os.open(path, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH) as file:
            data = os.pread(file, os.fstat(file).st_size, 0)
    except OSError as error:
        raise FedloraError(
            f"{path} cannot be read ({error.strerror}); name the folder that state in the node "
            "configuration says"
        ) from None
    events: list[Mapping[str, Any]] = []
    pending, torn = list[bytes](), 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        event = _event(line)
        if event is None:
            torn += bool(line)
            if line:
                pending.append(line)
            continue
        if event[_AFTER] != _digest(b"\n".join(pending)):
            raise FedloraError(
                f"{path} is damaged before line {number}, which does not follow on what is there; "
                "restore a copy, or move the file away and the device begins another"
            )
        events.append({name: value for name, value in event.items() if name != _AFTER})
        pending = [line]
    return Audit(events, torn)


@contextmanager
def _locked(file: int, how: int) -> Iterator[int]:
    try:
        fcntl.flock(file, how)
        yield file
    finally:
        os.close(file)


def _tail(file: int) -> bytes:
    """Return the end of a file, from the beginning of a line on."""
    size = os.fstat(file).st_size
    start = max(0, size - _TAIL_BYTES)
    data = os.pread(file, size - start, start)
    return data if start == 0 else data.partition(b"\n")[2]


def _unvouched(tail: bytes) -> bytes:
    """Return the last whole line and what was torn behind it."""
    lines = [line for line in tail.split(b"\n") if line]
    whole = [place for place, line in enumerate(lines) if _event(line) is not None]
    return b"\n".join(lines[whole[-1] if whole else 0 :])


def _event(line: bytes) -> dict[str, Any] | None:
    """Return a whole line's event; None for what is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and all(
        isinstance(found.get(name), str) for name in ("event", "time", "session", _AFTER)
    )
    return found if whole else None


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:_DIGITS] if line else ""
