"""Which record each sample comes from, and by what its owner's ledger knows it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedlora.errors import FedloraError
from fedlora.privacy.ledger import Ledger
from fedlora.tasks import Record, Sample


@dataclass(frozen=True)
class Origins:
    """The records that a client's samples come from, by which its ledger knows them.

    Attributes
    ----------
    contents
        What makes each of the client's records itself; see ``content``.
    sources
        Place in it of each sample's record, training samples first, then held-out ones.
    """

    contents: Sequence[bytes] = ()
    sources: Sequence[int] = ()

    def ids(self, ledger: Ledger) -> list[int]:
        """Return each sample's identifier; samples of one record share what it may spend."""
        records = ledger.sample_ids(self.contents)
        return [records[source] for source in self.sources]


def origins(rows: Sequence[Sequence[Record]], samples: Sequence[Sequence[Sample]]) -> Origins:
    """Return where samples come from.

    Parameters
    ----------
    rows, samples
        Training and held-out records, and the samples made of them.

    Raises
    ------
    FedloraError
        When a sample does not name its record.
    """
    sources, start = list[int](), 0
    for records, made in zip(rows, samples, strict=True):
        for sample in made:
            if not 0 <= sample.source < len(records):
                raise FedloraError(
                    f"a sample has source {sample.source} of {len(records)} records, so its "
                    "owner's budget cannot be found; let the task's samples() set it"
                )
            sources.append(start + sample.source)
        start += len(records)
    return Origins([content(record) for part in rows for record in part], sources)


def content(record: Record) -> bytes:
    """Return what makes a record itself: its values, whatever a scenario calls its columns."""
    return json.dumps(list(record.values()), ensure_ascii=False, default=_digest).encode()


def _digest(numbers: Any) -> str:
    """Return what makes an array itself."""
    shape = f"{numbers.dtype} {numbers.shape} ".encode()
    return hashlib.sha256(shape + numbers.tobytes()).hexdigest()
