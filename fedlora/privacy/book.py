"""What a ledger's journal says: the sums that each sample has spent.

First line: format, client, salt, sequence number, time, number of samples in each of the two tables
of sums. Then these as of that number, ``{"spent": [[id, rho], ...]}`` for noised uploads and
``{"labels": [[id, epsilon], ...]}`` for randomised labels. Then one line for each charge since:
``{"seq": number, "time": seconds, "rho": cost, "ids": [id, ...]}``, with ``"epsilon": cost`` where
labels were drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fedlora.errors import FedloraError
from fedlora.privacy import journal
from fedlora.privacy.filter import add_up

FORMAT = "fedlora-privacy-ledger/1"

_SPENT_PER_LINE = 1000
_TABLES = ("spent", "labels")


@dataclass
class Book:
    """State of a ledger.

    Attributes
    ----------
    client
        Whose it is.
    salt
        Key of the samples' identifiers.
    seq
        Number of the last charge.
    time
        When it was booked, in seconds since the epoch.
    spent
        Sum of rho by sample identifier, replace-one.
    largest
        The largest of them.
    labels
        Sum of the pure epsilons of randomised labels by sample identifier.
    """

    client: str
    salt: bytes
    seq: int
    time: float
    spent: dict[int, float] = field(default_factory=dict)
    largest: float = 0.0
    labels: dict[int, float] = field(default_factory=dict)

    def after(self, ids: Iterable[int], cost: float) -> dict[int, float]:
        """Return the sums of these samples after an upload; one named twice pays twice."""
        sums: dict[int, float] = {}
        for i in ids:
            sums[i] = add_up(sums.get(i, self.spent.get(i, 0.0)), cost)
        return sums

    def labels_after(self, ids: Iterable[int], epsilon: float) -> dict[int, float]:
        """Return the pure epsilons of these samples after a draw of their labels."""
        return {i: add_up(self.labels[i], epsilon) if i in self.labels else epsilon for i in ids}

    def apply(self, charge: journal.Record) -> None:
        """Count a charge.

        Raises
        ------
        ValueError
            When it does not follow on the last one.
        """
        if charge["seq"] != self.seq + 1:
            raise ValueError(f"charge {charge['seq']} follows charge {self.seq}")
        self.seq, self.time = charge["seq"], charge["time"]
        if "epsilon" in charge:
            self.labels |= self.labels_after(charge["ids"], charge["epsilon"])
            return
        sums = self.after(charge["ids"], charge["rho"])
        self.spent |= sums
        self.largest = max([self.largest, *sums.values()])

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of a journal that holds this state and no charge."""
        header = {"format": FORMAT, "client": self.client, "salt": self.salt.hex()}
        counts = {"samples": len(self.spent), "labels": len(self.labels)}
        yield journal.encode(header | {"seq": self.seq, "time": self.time} | counts)
        for name in _TABLES:
            items = list(getattr(self, name).items())
            for start in range(0, len(items), _SPENT_PER_LINE):
                yield journal.encode({name: items[start : start + _SPENT_PER_LINE]})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a journal, without a last line that a crash tore before its charge was on disk.

        Raises
        ------
        FedloraError
            When the file is damaged anywhere else, or no journal of a ledger.
        """
        book, left, whole = None, 0, 0
        try:
            for record, end in journal.read(path):
                if record is None:
                    torn = book is not None and left <= 0
                    if torn and end == path.stat().st_size:
                        break
                    raise ValueError(f"the line at byte {whole} does not match its checksum")
                if book is None:
                    if record["format"] != FORMAT:
                        raise ValueError(f"its format is {record['format']!r}, not {FORMAT}")
                    salt = bytes.fromhex(record["salt"])
                    left = int(record["samples"]) + int(record.get("labels", 0))
                    seq, time = int(record["seq"]), float(record["time"])
                    book = cls(record["client"], salt, seq, time)
                elif left > 0:
                    for name in _TABLES:
                        getattr(book, name).update(record.get(name, ()))
                    left -= sum(len(record.get(name, ())) for name in _TABLES)
                    book.largest = max(book.spent.values(), default=0.0)
                else:
                    book.apply(record)
                whole = end
            if book is None or left > 0:
                raise ValueError(f"it ends at byte {whole}, inside its sums")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FedloraError(
                f"ledger {path} is damaged ({error}); restore its newest copy"
            ) from error
        return book
