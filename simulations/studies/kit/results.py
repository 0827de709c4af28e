"""Results of trials in a file of JSON lines: each is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fedlora.errors import FedloraError
from fedlora.storage import append_line, read_lines

Record = Mapping[str, Any]
Key = Any
"""What tells trials apart: hashable, and sortable where results are sorted."""


class Trial(Protocol):
    """What is run once and known by its key."""

    @property
    def key(self) -> Key:
        """What tells trials apart."""
        ...


T = TypeVar("T", bound=Trial)


class Results:
    """Finished trials by key, in the order in which they ended.

    Parameters
    ----------
    path
        The file, which need not exist.
    key
        Returns the key of the trial that a record is of.
    what
        Whose results it holds, as a refusal calls them.

    Raises
    ------
    FedloraError
        When the file holds anything else.
    """

    def __init__(self, path: Path, key: Callable[[Record], Key], what: str) -> None:
        self.path, self._key, self._what = path, key, what
        self.records: dict[Key, Record] = {}
        self.read()

    def read(self) -> None:
        """Read what others may have added."""
        try:
            lines, _ = read_lines(self.path)
            if not lines and self.path.is_file() and self.path.stat().st_size:
                raise ValueError("no line of JSON")
            self.records = {self._key(line): line for line in lines}
        except (LookupError, TypeError, ValueError):
            raise FedloraError(
                f"{self.path} holds something else than results of {self._what}; name another"
            ) from None

    def add(self, record: Record) -> None:
        """Keep a finished trial."""
        append_line(self.path, record, sync=False)
        self.records[self._key(record)] = record

    def missing(self, trials: Iterable[T]) -> list[T]:
        """Return the trials that are not there yet, each once."""
        return [t for t in {t.key: t for t in trials}.values() if t.key not in self.records]
