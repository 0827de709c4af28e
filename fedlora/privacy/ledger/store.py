"""A client's book of charges on its own disk, which no crash and no second process makes smaller.

A charge is appended and synced to disk before the upload may leave, so that a crash can only make
the book count an upload that never left. Three files belong together:

``NAME``
    Journal of the charges, see ``fedlora.privacy.ledger.records`` and ``fedlora.storage.journal``.
    When the charges outgrow the sums they are merged into them.
``NAME.mark``
    Number of the last charge that was on disk; it gives away a journal that lost charges.
``NAME.lock``
    Held by the process that uses the ledger; the operating system releases it when that dies.

Restoring an old copy of all three files at once is the one thing that cannot be seen.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedlora.errors import FedloraError
from fedlora.privacy.ledger.records import Book
from fedlora.storage import journal, lock_file

log = logging.getLogger("fedlora.edge")

CLOCK_SLACK_S = 60.0  # what time synchronisation may set a clock back by

_JOURNAL_BYTES_MIN = 1 << 20
_LOOKS, _LOOK_PAUSE_S = 3, 0.05


class LedgerFile:
    """The files of a ledger, held by this process until they are closed.

    Charges come from one thread at a time; any thread may close it, which waits for a charge that
    is being written.

    Parameters
    ----------
    path
        Journal file; it is created when there is none, two more are kept beside it.
    client
        Whose ledger it is.
    clock
        Seconds since the epoch.

    Raises
    ------
    FedloraError
        When the ledger is in use, damaged, another client's, rolled back, or from the future.

    Attributes
    ----------
    book
        What has been charged.
    """

    def __init__(self, path: Path, client: str, clock: Callable[[], float]) -> None:
        self.path = path
        self._client, self._clock = client, clock
        self._writing = threading.Lock()
        self._mark = _mark_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(path.name + ".lock")
            lock.touch(0o600)  # who can open it could hold it
            self._lock = lock_file(lock)
        except OSError as error:
            raise self._failed("open", error) from error
        if self._lock is None:
            raise FedloraError(
                f"ledger {path} is in use by another process; stop that or set another ledger path"
            )
        try:
            self.book = self._read()
            self._rewrite()
            self._mark.write(self.book.seq)
            self._usable = True
        except BaseException as error:
            self._lock.close()
            if isinstance(error, OSError):
                raise self._failed("open", error) from error
            raise

    def close(self) -> None:
        """Let another process use the ledger, which takes no charge more; twice does no harm."""
        with self._writing:
            self._usable = False
            try:
                self._journal.close()
            except OSError as error:  # of a full disk: what a failed charge had left to write
                log.warning("%s", self._failed("close", error))
            finally:
                if self._lock is not None:
                    self._lock.close()

    def append(self, cost: Mapping[str, Any]) -> None:
        """Write a charge, sync it, and count it in the book.

        Parameters
        ----------
        cost
            A charge as ``fedlora.privacy.ledger.records`` has it, without number and time.

        Raises
        ------
        FedloraError
            When the ledger is closed, the clock went back, or the disk failed; after a failure of
            the disk the ledger must be opened anew.
        """
        with self._writing:  # or close could give the file away in the middle of it
            self._check_usable()
            charge = {"seq": self.book.seq + 1, "time": self._now(self.book), **cost}
            line = journal.encode(charge)
            self._usable = False  # a failure on the way leaves the file in doubt
            try:
                if self._journal.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._journal.fileno())
                self.book.apply(charge)
                self._mark.write(self.book.seq)
                self._bytes += len(line)
                if self._bytes > self._rewrite_bytes:
                    self._journal.close()
                    self._rewrite()
            except OSError as error:
                raise self._failed("charge", error) from error
            self._usable = True

    def merge(self) -> None:
        """Write the book as it is now in place of the journal; raises as ``append``."""
        with self._writing:
            self._check_usable()
            self._usable = False
            try:
                self._journal.close()
                self._rewrite()
            except OSError as error:
                raise self._failed("write", error) from error
            self._usable = True

    def _check_usable(self) -> None:
        if not self._usable:
            raise FedloraError(f"ledger {self.path} is closed; open it again")

    def _now(self, book: Book) -> float:
        now = self._clock()
        if now < book.time - CLOCK_SLACK_S:
            raise FedloraError(
                f"the clock is {book.time - now:.0f} s behind the last charge in {self.path}; set "
                "the clock, or nobody can tell whether the ledger was rolled back"
            )
        return max(now, book.time)

    def _failed(self, verb: str, error: OSError) -> FedloraError:
        return FedloraError(
            f"cannot {verb} ledger {self.path}: {error.strerror}; mend the disk or the path, then "
            "start again"
        )

    def _read(self) -> Book:
        """Read the ledger, or start one where there is none."""
        mark = self._mark.read()
        if not self.path.exists():
            if mark:
                raise _gone(self.path, mark)
            self._mark.create()
            fresh = Book(self._client, secrets.token_bytes(16), seq=0, time=self._clock())
            journal.replace(self.path, fresh.lines())
            mark = 0
        book = Book.read(self.path)
        _check(self.path, book, self._client, mark)
        self._now(book)
        return book

    def _rewrite(self) -> None:
        """Merge the charges into the sums, and append to the new file from now on."""
        journal.replace(self.path, self.book.lines())
        self._journal = self.path.open("ab", buffering=0)  # or close would write what had failed
        self._bytes = self.path.stat().st_size
        self._rewrite_bytes = max(_JOURNAL_BYTES_MIN, 4 * self._bytes)


def verified(path: Path, client: str) -> Book:
    """Read a ledger without holding it, as a device may be using it, and check that it is whole.

    Parameters
    ----------
    path
        Journal file.
    client
        Whose ledger it has to be.

    Raises
    ------
    FedloraError
        When it is gone, damaged, another client's, cut short or rolled back.
    """
    for _ in range(_LOOKS):  # a line that is just being written looks like a damaged one
        mark = _mark_of(path).read()
        if not path.exists():
            raise _gone(path, mark or 0)
        with contextlib.suppress(FedloraError):
            book = Book.read(path)
            break
        time.sleep(_LOOK_PAUSE_S)
    else:
        book = Book.read(path)
    _check(path, book, client, mark)
    return book


def _mark_of(path: Path) -> journal.Mark:
    return journal.Mark(path.with_name(path.name + ".mark"))


def _gone(path: Path, mark: int) -> FedloraError:
    return FedloraError(
        f"ledger {path} is gone although {mark} charges were booked; restore it, or delete "
        f"{_mark_of(path).path.name} too if its samples are no longer used"
    )


def _check(path: Path, book: Book, client: str, mark: int | None) -> None:
    """Refuse a book that is another client's, or ends before what was on disk."""
    if book.client != client:
        raise FedloraError(
            f"ledger {path} is that of client {book.client}, not {client}; set another ledger path"
        )
    if mark is None:
        raise FedloraError(f"{_mark_of(path).path} is gone; restore the ledger's newest copy")
    if mark > book.seq:
        raise FedloraError(
            f"ledger {path} ends at charge {book.seq} but charge {mark} was booked; it was rolled "
            "back or cut short, restore its newest copy"
        )
