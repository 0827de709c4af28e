"""What a client drew at random and has to repeat after a restart: on its disk before it is charged.

Drawing it anew would be a second look at what it hides, which would have to be paid for. So what is
drawn is synced to disk before it is charged and sent: a crash leaves it unsent, or to be sent again
as it is. Whether it has been paid for, the ledger says: with what is drawn stands which release of
its record pays, the first, the second, ..., and it is paid once the ledger has counted so many. So
what an earlier draw has paid, of which the file was lost or replaced, pays for no later one.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from fedlora.errors import FedloraError
from fedlora.storage import journal

Name = TypeVar("Name")
Value = TypeVar("Value")


class Drawn(ABC, Generic[Name, Value]):
    """A file of what was drawn under one setting, by name; keep it under the ledger's lock.

    Parameters
    ----------
    path
        File; it is created with what is drawn first. None keeps it in memory alone.
    header
        Format, and what it was drawn for. The file of another setting is replaced.

    Raises
    ------
    FedloraError
        When the file cannot be read or written.
    """

    def __init__(self, path: Path | None, header: journal.Record) -> None:
        self._path, self._header = path, header
        self._drawn: dict[Name, Value] = {}
        self._begun = False
        if path is not None and path.exists():
            try:
                self._read(path)
            except OSError as error:
                raise self._failed("read", error) from error

    @abstractmethod
    def _record(self, name: Name, value: Value) -> journal.Record:
        """Return the line of what was drawn."""

    @abstractmethod
    def _of(self, record: Mapping[str, Any]) -> tuple[Name, Value]:
        """Return what a line holds."""

    def get(self, name: Name) -> Value | None:
        """Return what was drawn under a name, if it was."""
        return self._drawn.get(name)

    def names(self) -> list[Name]:
        """Return all names under which something was drawn."""
        return list(self._drawn)

    def drop(self, names: Iterable[Name]) -> None:
        """Forget what was drawn under some names and never sent; ``keep`` leaves it out."""
        for name in names:
            self._drawn.pop(name, None)

    def keep(self, drawn: Mapping[Name, Value]) -> None:
        """Write what was drawn to disk; only then may it be charged and sent.

        Raises
        ------
        FedloraError
            When the disk fails.
        """
        if self._path is not None and drawn:
            try:
                if not self._begun:
                    lines = self._lines(self._drawn)
                    journal.replace(self._path, [journal.encode(self._header), *lines])
                    self._begun = True
                with self._path.open("ab") as file:
                    file.writelines(self._lines(drawn))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._failed("write", error) from error
        self._drawn |= drawn

    def _lines(self, drawn: Mapping[Name, Value]) -> Iterable[bytes]:
        return (journal.encode(self._record(name, value)) for name, value in drawn.items())

    def _read(self, path: Path) -> None:
        """Read what was drawn under this setting; a line that a crash tore was never sent."""
        records = (record for record, _ in journal.read(path))
        if next(records, None) == self._header:
            self._drawn = dict(self._of(record) for record in records if record is not None)

    def _failed(self, verb: str, error: OSError) -> FedloraError:
        return FedloraError(
            f"cannot {verb} {self._path}: {error.strerror}; mend the disk or the path"
        )
