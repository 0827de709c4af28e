"""What a ledger's journal says: the sum of rho that each sample has spent.

First line: format, client, salt, sequence number, time, number of samples. Then the samples' sums
as of that number, ``{"spent": [[id, rho], ...]}``. Then one line for each charge since:
``{"seq": number, "time": seconds, "rho": cost, "ids": [id, ...]}``.
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
    """

    client: str
    salt: bytes
    seq: int
    time: float
    spent: dict[int, float] = field(default_factory=dict)
    largest: float = 0.0

    def after(self, ids: Iterable[int], cost: float) -> dict[int, float]:
        """Return the sums of these samples after an upload; one named twice pays twice."""
        sums: dict[int, float] = {}
        for i in ids:
            sums[i] = add_up(sums.get(i, self.spent.get(i, 0.0)), cost)
        return sums

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
        sums = self.after(charge["ids"], charge["rho"])
        self.spent |= sums
        self.largest = max([self.largest, *sums.values()])

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of a journal that holds this state and no charge."""
        header = {"format": FORMAT, "client": self.client, "salt": self.salt.hex()}
        counts = {"seq": self.seq, "time": self.time, "samples": len(self.spent)}
        yield journal.encode(header | counts)
        items = list(self.spent.items())
        for start in range(0, len(items), _SPENT_PER_LINE):
            yield journal.encode({"spent": items[start : start + _SPENT_PER_LINE]})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a journal, without a last line that a crash tore before its charge was on disk.

        Raises
        ------
        FedloraError
            When the file is damaged anywhere else, or no journal of a ledger.
        """
        book, samples, whole = None, 0, 0
        try:
            for record, end in journal.read(path):
                if record is None:
                    torn = book is not None and len(book.spent) >= samples
                    if torn and end == path.stat().st_size:
                        break
                    raise ValueError(f"the line at byte {whole} does not match its checksum")
                if book is None:
                    if record["format"] != FORMAT:
                        raise ValueError(f"its format is {record['format']!r}, not {FORMAT}")
                    salt, samples = bytes.fromhex(record["salt"]), int(record["samples"])
                    seq, time = int(record["seq"]), float(record["time"])
                    book = cls(record["client"], salt, seq, time)
                elif len(book.spent) < samples:
                    book.spent.update(record["spent"])
                    book.largest = max(book.spent.values())
                else:
                    book.apply(record)
                whole = end
            if book is None or len(book.spent) < samples:
                raise ValueError(f"it ends at byte {whole}, inside its sums")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FedloraError(
                f"ledger {path} is damaged ({error}); restore its newest copy"
            ) from error
        return book
