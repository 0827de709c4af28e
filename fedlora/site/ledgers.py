"""The ledgers that a device counted in, held against what its audit file says of them.

A ledger gives away that it was cut short, but not that an old copy of all its files was put back.
The audit file knows how many charges there were.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.checks import finite
from fedlora.config import ClientLimit
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import epsilon_of
from fedlora.privacy.ledger import Book, verified
from fedlora.site.history import Session


@dataclass(frozen=True)
class Verified:
    """A ledger as it is now.

    Attributes
    ----------
    path, client
        Where it is, and whose.
    data
        Data sets that were counted in it.
    fault
        Why it cannot be what the device wrote, as a sentence with the mend; empty where all is
        well. Then the figures are known.
    charges, records, rho, label_epsilon, epsilon
        Number of charges and records; the largest sum of rho and of labels' epsilon, and the
        epsilon of both.
    limit
        The owner's limit when it was used last.
    """

    path: str
    client: str
    data: tuple[str, ...]
    limit: Mapping[str, Any] | None
    fault: str = ""
    charges: int = 0
    records: int = 0
    rho: float = 0.0
    label_epsilon: float = 0.0
    epsilon: float | None = None


def verify_ledgers(sessions: Sequence[Session]) -> list[Verified]:
    """Return every ledger that sessions were charged in, by the order of their first use."""
    used: dict[str, list[Session]] = {}
    for session in sessions:
        for ledger in session.ledgers[:1]:
            used.setdefault(ledger["path"], []).append(session)
    return [_verify(path, own) for path, own in used.items()]


def _verify(path: str, sessions: Sequence[Session]) -> Verified:
    data = tuple(dict.fromkeys(str((s.accepted or {}).get("data")) for s in sessions))
    client, limit = str(sessions[-1].asked.get("client", "")), sessions[-1].limit
    try:
        book = verified(Path(path), client)
        for fault in _faults(path, book, sessions):
            raise FedloraError(fault)
    except FedloraError as error:
        return Verified(path, client, data, limit, str(error))
    labels = max(book.labels.values(), default=0.0)
    terms = ClientLimit(**limit) if limit else ClientLimit(epsilon=1.0)
    return Verified(
        path,
        client,
        data,
        limit,
        charges=book.seq,
        records=len(book.spent.keys() | book.labels.keys()),
        rho=book.largest,
        label_epsilon=labels,
        epsilon=finite(epsilon_of(book.largest, terms.delta, tight=terms.tight) + labels),
    )


def _faults(path: str, book: Book, sessions: Sequence[Session]) -> Iterator[str]:
    """Yield why a whole ledger is not the one that was charged, or not all of it."""
    said = [ledger for session in sessions for ledger in session.ledgers]
    if said[-1]["key"] != book.key:
        yield (
            f"ledger {path} has key {book.key}, and this device was charged in one of key "
            f"{said[-1]['key']}; restore that, as its records' budget would begin anew"
        )
    charges = max(ledger["charges"] for ledger in said if ledger["key"] == book.key)
    rho = max(ledger["rho"] for ledger in said if ledger["key"] == book.key)
    if charges > book.seq or rho > book.largest:
        yield (
            f"ledger {path} has {book.seq} charges, and the audit file knows of {charges}; an old "
            "copy was put back, restore the newest one"
        )
    if book.time > time.time() + _FUTURE_S:
        yield (
            f"ledger {path} has a charge of {book.time - time.time():.0f} s from now; set the clock"
        )


_FUTURE_S = 60.0
