"""The keys of noise that is drawn once for a sample, on a client's disk, so that it is repeated.

Activations under ``privacy.activation_sigma`` are noised once and charged once. After a restart the
same bytes have to be made again, as other noise would be a second look at the text. So the key of
each sample's noise is synced to disk before it is charged and sent: noise follows from the key, and
the activation from the frozen embedding. Keys are kept for one plan, which names that embedding
too: the same noise on two activations of a sample would cancel out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fedlora.errors import FedloraError
from fedlora.storage import journal

_FORMAT = "fedlora-noise-keys/1"


class NoiseKeys:
    """What was drawn for the samples of one plan; keep it under the ledger's lock.

    Parameters
    ----------
    path
        File; it is created with the first key. None keeps nothing on disk.
    plan
        What the keys were drawn for. The file of another plan is replaced.

    Raises
    ------
    FedloraError
        When the file cannot be read or written.
    """

    def __init__(self, path: Path | None = None, plan: str = "") -> None:
        self._path = path
        self._header = {"format": _FORMAT, "plan": plan}
        self._drawn: dict[str, bytes] = {}
        self._begun = False
        if path is not None and path.exists():
            try:
                self._read(path)
            except OSError as error:
                raise self._failed("read", error) from error

    def get(self, sample: str) -> bytes | None:
        """Return a sample's key, if it was drawn."""
        return self._drawn.get(sample)

    def names(self) -> list[str]:
        """Return the names of all samples whose key was drawn."""
        return list(self._drawn)

    def keep(self, drawn: Mapping[str, bytes]) -> None:
        """Write keys to disk; only then may what they noise be charged and sent.

        Raises
        ------
        FedloraError
            When the disk fails.
        """
        if not drawn:
            return
        if self._path is not None:
            try:
                if not self._begun:
                    lines = map(_line, self._drawn.items())
                    journal.replace(self._path, [journal.encode(self._header), *lines])
                    self._begun = True
                with self._path.open("ab") as file:
                    file.writelines(map(_line, drawn.items()))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._failed("write", error) from error
        self._drawn |= drawn

    def _read(self, path: Path) -> None:
        """Read the keys of this plan; what a line that a crash tore would noise was never sent."""
        records = (record for record, _ in journal.read(path))
        if next(records, None) != self._header:
            return
        for record in records:
            if record is not None:
                self._drawn[record["sample"]] = bytes.fromhex(record["key"])

    def _failed(self, verb: str, error: OSError) -> FedloraError:
        return FedloraError(
            f"cannot {verb} {self._path}: {error.strerror}; mend the disk or the path"
        )


def _line(item: tuple[str, bytes]) -> bytes:
    return journal.encode({"sample": item[0], "key": item[1].hex()})
