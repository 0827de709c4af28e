"""The noised labels of a run on a client's disk, so that a client that starts again repeats them.

Under the release ``logits`` a label's message is drawn once, and its class is not written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.privacy.mechanisms.drawn import Drawn

FORMAT = "fedlora-noised-labels/2"
Noised = tuple[list[float], float, int]
"""A message, the noise on it over the clipping norm, and the number of the release of its record
that pays for it; see ``Drawn``."""


class NoisedLabels(Drawn[int, Noised]):
    """The message of each record, by its identifier (``Ledger.sample_ids``); see ``Drawn``.

    Parameters
    ----------
    path
        File; None keeps nothing on disk.
    setting
        What the labels were drawn for: the run's name, column and classes, the noise.
    """

    def __init__(self, path: Path | None, setting: Mapping[str, Any]) -> None:
        super().__init__(path, {"format": FORMAT, **setting})

    def _record(self, name: int, value: Noised) -> Mapping[str, Any]:
        return {"sample": name, "message": value[0], "sigma": value[1], "release": value[2]}

    def _of(self, record: Mapping[str, Any]) -> tuple[int, Noised]:
        told = record["message"], record["sigma"], int(record.get("release", 1))
        return int(record["sample"]), told
