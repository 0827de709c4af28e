"""The keys of noise that is drawn once for a sample, on a client's disk, so that it is repeated.

Activations under ``privacy.activation_sigma`` are noised once and charged once, and after a restart
the same bytes have to be made again. Noise follows from its key, and the activation from the frozen
embedding. Keys are kept for one plan, which names that embedding too: the same noise on two
activations of a sample would cancel out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.privacy.mechanisms.drawn import Drawn

_FORMAT = "fedlora-noise-keys/1"
Key = tuple[bytes, int]
"""32 bytes, and the number of the release of its record that pays for them; see ``Drawn``."""


class NoiseKeys(Drawn[str, Key]):
    """A key for each sample of a plan; see ``Drawn``.

    Parameters
    ----------
    path
        File; None keeps nothing on disk.
    plan
        What the keys were drawn for.
    """

    def __init__(self, path: Path | None = None, plan: str = "") -> None:
        super().__init__(path, {"format": _FORMAT, "plan": plan})

    def _record(self, name: str, value: Key) -> Mapping[str, Any]:
        return {"sample": name, "key": value[0].hex(), "release": value[1]}

    def _of(self, record: Mapping[str, Any]) -> tuple[str, Key]:
        # an older file does not say which release paid: the first
        return record["sample"], (bytes.fromhex(record["key"]), int(record.get("release", 1)))
