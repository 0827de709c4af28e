"""The noised labels of a run on a client's disk, so that a client that starts again repeats them.

Under the release ``logits`` a label's message is drawn once. Drawing it anew after a restart would
give a second look at the label, which would have to be paid for. So what is drawn is synced to disk
before it is charged and sent: a crash leaves it unsent, or to be sent again as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.errors import FedloraError
from fedlora.storage import journal

FORMAT = "fedlora-noised-labels/2"


class NoisedLabels:
    """What was drawn for each record under one setting; keep it under the ledger's lock.

    A record is known by its identifier in the ledger, which follows from all that it holds; its
    class is not written down. Whether it has been paid for, the ledger says.

    Parameters
    ----------
    path
        File; it is created with the first label. None keeps nothing.
    setting
        What the labels were drawn for: the run's name, column and classes, the noise. The file of
        another run or setting is replaced.

    Raises
    ------
    FedloraError
        When the file cannot be read or written.
    """

    def __init__(self, path: Path | None, setting: Mapping[str, Any]) -> None:
        self._path = path
        self._header = {"format": FORMAT, **setting}
        self._drawn: dict[int, tuple[list[float], float]] = {}
        self._begun = False
        if path is not None and path.exists():
            try:
                self._read(path)
            except OSError as error:
                raise self._failed("read", error) from error

    def get(self, record: int) -> tuple[list[float], float] | None:
        """Return a record's message and the noise on it over the clipping norm, if it was drawn."""
        return self._drawn.get(record)

    def keep(self, drawn: Mapping[int, tuple[list[float], float]]) -> None:
        """Write what was drawn to disk; only then may it be charged and sent.

        Parameters
        ----------
        drawn
            By the record's identifier (``Ledger.sample_ids``): its message, and the noise on it
            over the clipping norm.

        Raises
        ------
        FedloraError
            When the disk fails.
        """
        if self._path is None or not drawn:
            return
        try:
            if not self._begun:
                self._rewrite(self._path)
            with self._path.open("ab") as file:
                file.writelines(map(_line, drawn.items()))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed("write", error) from error
        self._drawn |= drawn

    def _read(self, path: Path) -> None:
        """Read the labels of this run; a line that a crash tore was never sent."""
        records = (record for record, _ in journal.read(path))
        if next(records, None) != self._header:
            return
        for record in records:
            if record is not None:
                self._drawn[int(record["sample"])] = (record["message"], record["sigma"])

    def _rewrite(self, path: Path) -> None:
        journal.replace(path, [journal.encode(self._header), *map(_line, self._drawn.items())])
        self._begun = True

    def _failed(self, verb: str, error: OSError) -> FedloraError:
        return FedloraError(
            f"cannot {verb} {self._path}: {error.strerror}; mend the disk or the path"
        )


def _line(item: tuple[int, tuple[list[float], float]]) -> bytes:
    sample, (message, sigma) = item
    return journal.encode({"sample": sample, "message": message, "sigma": sigma})
