"""Files that survive a crash at any moment: checksummed lines and a high-water mark.

A line is eight hex digits of CRC-32, a blank, a JSON object and a line feed. Lines are only ever
appended; a file as a whole is replaced by writing another one aside and renaming it. The checksum
finds damage, not malice: these files belong to whom they protect.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedlora.errors import FedloraError
from fedlora.storage.files import open_private

Record = Mapping[str, Any]

_SLOT_BYTES = 32
_SLOTS = 2


def encode(record: Record) -> bytes:
    """Return the line of a record."""
    body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def read(path: Path) -> Iterator[tuple[Record | None, int]]:
    """Yield each record with the offset of its end, and None for a line that does not check out.

    Nothing is yielded after a bad line.
    """
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            record = _decode(line)
            yield record, end
            if record is None:
                return


def _decode(line: bytes) -> Record | None:
    checksum, _, body = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    record = json.loads(body)
    return record if isinstance(record, dict) else None


def replace(path: Path, lines: Iterable[bytes]) -> None:
    """Write a whole file so that a crash leaves either the old or the new one.

    Nobody but this user may read it.
    """
    aside = path.with_name(path.name + ".new")
    with open_private(aside) as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Mark:
    """The number of the last record that was known to be on disk, kept beside the journal.

    It tells a journal that lost records (restored from a backup, cut short) from one whose last
    line a crash tore. Two slots are written in turn, so that a torn one leaves the other. The mark
    may lag behind the journal and never runs ahead of it.

    Parameters
    ----------
    path
        File of the mark.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Start at 0."""
        replace(self.path, [self._slot(0) * _SLOTS])

    def read(self) -> int | None:
        """Return the number, or None when there is no mark.

        Raises
        ------
        FedloraError
            When the file is damaged.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        slots = [content[i : i + _SLOT_BYTES] for i in range(0, len(content), _SLOT_BYTES)]
        numbers = [int(slot[:20]) for slot in slots if slot[:20].isdigit()]
        valid = [number for number in numbers if self._slot(number) in slots]
        if not valid:
            raise FedloraError(f"{self.path} is damaged; restore the ledger's newest copy")
        return max(valid)

    def write(self, number: int) -> None:
        """Record that ``number`` is on disk."""
        with self.path.open("r+b") as file:
            file.seek(number % _SLOTS * _SLOT_BYTES)
            file.write(self._slot(number))

    @staticmethod
    def _slot(number: int) -> bytes:
        text = b"%020d" % number
        return b"%s %08x  \n" % (text, zlib.crc32(text))
