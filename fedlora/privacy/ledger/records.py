"""What a ledger's journal says: the sums that each sample has spent.

First line: format, client, salt, sequence number, time, number of entries in each of the three
tables. Then these as of that number, ``{"spent": [[id, rho], ...]}`` for noised uploads,
``{"labels": [[id, epsilon], ...]}`` for randomised labels, and ``{"run": name, "uploads": [[id,
number, rho], ...]}`` for the uploads that the plan of one of the latest runs counts. Then one line
for each charge since: ``{"seq": number, "time": seconds, "rho": cost, "ids": [id, ...]}``, with
``"epsilon": cost`` in place of ``rho`` where labels were drawn, and the name of the ``run`` where
its plan counts the upload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fedlora.errors import FedloraError
from fedlora.privacy.accounting import add_up
from fedlora.storage import journal

FORMAT = "fedlora-privacy-ledger/2"
OLD_FORMAT = "fedlora-privacy-ledger/1"
"""Some of its samples may be known by their tokens in place of their records."""

RUNS_KEPT = 8

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
    runs
        For each of the latest runs, by its name: number and sum of rho of the uploads that its
        plan counts, by sample identifier.
    format
        ``OLD_FORMAT`` until it is known that no sample goes by its tokens.
    """

    client: str
    salt: bytes
    seq: int
    time: float
    spent: dict[int, float] = field(default_factory=dict)
    largest: float = 0.0
    labels: dict[int, float] = field(default_factory=dict)
    runs: dict[str, dict[int, tuple[int, float]]] = field(default_factory=dict)
    format: str = FORMAT

    @property
    def key(self) -> str:
        """Which ledger this is, by a digest of the key of its samples' identifiers."""
        return hashlib.sha256(self.salt).hexdigest()[:16]

    def after(self, ids: Iterable[int], cost: float) -> dict[int, float]:
        """Return the sums of these samples after an upload; one named twice pays twice."""
        sums: dict[int, float] = {}
        for i in ids:
            sums[i] = add_up(sums.get(i, self.spent.get(i, 0.0)), cost)
        return sums

    def labels_after(self, ids: Iterable[int], epsilon: float) -> dict[int, float]:
        """Return the pure epsilons of these samples after a draw; one named twice pays twice."""
        sums: dict[int, float] = {}
        for i in ids:
            before = sums.get(i, self.labels.get(i))
            sums[i] = epsilon if before is None else add_up(before, epsilon)
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
        if "epsilon" in charge:
            self.labels |= self.labels_after(charge["ids"], charge["epsilon"])
            return
        sums = self.after(charge["ids"], charge["rho"])
        self.spent |= sums
        self.largest = max([self.largest, *sums.values()])
        if "run" in charge:
            done = self._run(charge["run"])
            for i in charge["ids"]:
                number, cost = done.get(i, (0, 0.0))
                done[i] = (number + 1, add_up(cost, charge["rho"]))

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of a journal that holds this state and no charge."""
        header = {"format": self.format, "client": self.client, "salt": self.salt.hex()}
        counts = {"samples": len(self.spent), "labels": len(self.labels)}
        counts["runs"] = sum(map(len, self.runs.values()))
        yield journal.encode(header | {"seq": self.seq, "time": self.time} | counts)
        for name in _TABLES:
            items = list(getattr(self, name).items())
            for start in range(0, len(items), _SPENT_PER_LINE):
                yield journal.encode({name: items[start : start + _SPENT_PER_LINE]})
        for run, done in self.runs.items():
            rows = [[i, number, cost] for i, (number, cost) in done.items()]
            for start in range(0, len(rows), _SPENT_PER_LINE):
                yield journal.encode({"run": run, "uploads": rows[start : start + _SPENT_PER_LINE]})

    def _run(self, name: str) -> dict[int, tuple[int, float]]:
        """Return the table of a run; where it is a new one the oldest is forgotten."""
        if name not in self.runs:
            while len(self.runs) >= RUNS_KEPT:
                del self.runs[next(iter(self.runs))]
        return self.runs.setdefault(name, {})

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
                    if record["format"] not in (FORMAT, OLD_FORMAT):
                        raise ValueError(f"its format is {record['format']!r}, not {FORMAT}")
                    salt = bytes.fromhex(record["salt"])
                    left = int(record["samples"])
                    left += int(record.get("labels", 0)) + int(record.get("runs", 0))
                    seq, time = int(record["seq"]), float(record["time"])
                    book = cls(record["client"], salt, seq, time, format=record["format"])
                elif left > 0:
                    for name in _TABLES:
                        getattr(book, name).update(record.get(name, ()))
                    uploads = record.get("uploads", ())
                    if uploads:
                        table = book._run(record["run"])
                        table |= {i: (number, cost) for i, number, cost in uploads}
                    left -= sum(len(record.get(name, ())) for name in _TABLES) + len(uploads)
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
