"""Warnings at the start of a device: records whose budget is kept, or begun anew, elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from clients.owner.origins import content
from fedlora.config import NodeKeys
from fedlora.errors import FedloraError
from fedlora.privacy.ledger import Book, record_ids
from fedlora.tasks import Record

log = logging.getLogger("fedlora.edge")


def warn_of_other_ledgers(keys: NodeKeys, records: Sequence[Record]) -> None:
    """Say where a ledger beside this device's own has counted these records, or its own has not.

    A budget belongs to the records. Under another partition-id, another ledger or with a column
    more they would begin with a fresh one, which only the owner can see.
    """
    own, contents = keys.ledger(), [content(record) for record in records]
    for path in sorted({own, *_ledgers(own.parent)}):
        try:
            book = Book.read(path)
        except (FedloraError, OSError):
            continue
        spent = book.spent.keys() | book.labels.keys()
        known = len(spent & set(record_ids(book.salt, contents)))
        if path != own and known:
            log.warning(
                "ledger %s has counted %d of these %d records, and this device counts in %s; set "
                "privacy-ledger to it, as a record's budget is one for all runs",
                path,
                known,
                len(contents),
                own,
            )
        elif path == own and spent and not known:
            log.warning(
                "ledger %s has counted %d records, and none of these %d; if they are the same with "
                "other columns or values, their budget begins anew",
                own,
                len(spent),
                len(contents),
            )


def _ledgers(folder: Path) -> list[Path]:
    """Return what may be a ledger in a folder."""
    try:
        marks = [path for path in folder.iterdir() if path.suffix == ".mark"]
    except OSError:
        return []
    return [path.with_suffix("") for path in marks if path.with_suffix("").is_file()]
