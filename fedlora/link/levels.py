"""What two ends remember of rows that went from one to the other, so that the next says less.

A codec that remembers (``fedlora.link.RememberingCodec``) rounds numbers to levels, and writes them
as differences to the levels that it wrote of the same rows before, where both ends have these. What
is read is the same with and without. Before rows are written, whoever reads them tells a digest of
what it has of each; where that is not what the writer has, the whole is written. So neither end has
to know when the other has lost something.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_NONE = 0  # the digest of what is not there
_UNKNOWN = -1.0


@dataclass(frozen=True)
class Levels:
    """Levels of rows.

    Attributes
    ----------
    numbers
        int8 of shape (rows, numbers).
    steps
        fp32 of shape (rows,): what a level of each row stands for; below 0 where none is known.
    """

    numbers: torch.Tensor
    steps: torch.Tensor

    @classmethod
    def unknown(cls, rows: int, numbers: int) -> Levels:
        """Return rows of which nothing is known."""
        return cls(torch.zeros(rows, numbers, dtype=torch.int8), torch.full((rows,), _UNKNOWN))

    @property
    def known(self) -> torch.Tensor:
        """Which rows are known, shape (rows,)."""
        return self.steps >= 0


class KeptLevels:
    """The levels of samples that one end keeps of what it last wrote to the other, or read.

    What does not fit is not kept, and nothing makes room, as in ``KeptRows``.

    Parameters
    ----------
    limit_bytes
        The most that is kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.nbytes = limit_bytes, 0
        self._own: dict[int, Levels] = {}

    def forget(self) -> None:
        """Forget all of them."""
        self._own.clear()
        self.nbytes = 0

    def keep(self, samples: Sequence[int], sizes: Sequence[int], levels: Levels) -> None:
        """Keep what was written or read, in place of what was kept of these samples before.

        Parameters
        ----------
        samples, sizes
            Names of the samples, and how many rows each has.
        levels
            Of all their rows, one after the other.
        """
        numbers_of, steps_of = (torch.split(p, list(sizes)) for p in (levels.numbers, levels.steps))
        for sample, numbers, steps in zip(samples, numbers_of, steps_of, strict=True):
            self.nbytes -= _nbytes(self._own.pop(sample, None))
            own = Levels(numbers, steps)
            if bool(own.known.all()) and self.nbytes + _nbytes(own) <= self.limit_bytes:
                self._own[sample] = Levels(numbers.clone(), steps.clone())
                self.nbytes += _nbytes(own)

    def digests(self, samples: Sequence[int]) -> torch.Tensor:
        """Return a CRC-32 of what is there of each sample, as int32; 0 where nothing is."""
        found = [_digest(self._own.get(sample)) for sample in samples]
        return torch.from_numpy(np.array(found, np.uint32).view(np.int32))

    def find(
        self, samples: Sequence[int], sizes: Sequence[int], numbers: int, told: torch.Tensor | None
    ) -> Levels:
        """Return what is kept of all rows of samples.

        Parameters
        ----------
        samples, sizes
            See ``keep``.
        numbers
            Levels of a row.
        told
            What the other end has of each sample, as ``digests`` gives it: anything else is taken
            to be unknown. None: all that is here has been told.
        """
        own = self.digests(samples) if told is not None else None
        parts = []
        for place, (sample, size) in enumerate(zip(samples, sizes, strict=True)):
            found = self._own.get(sample)
            same = told is None or own is None or bool(own[place] == told[place])
            if found is None or not same or found.numbers.shape != (size, numbers):
                found = Levels.unknown(size, numbers)
            parts.append(found)
        return Levels(
            torch.cat([part.numbers for part in parts]), torch.cat([part.steps for part in parts])
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, for the end's own disk."""
        own, none = list(self._own.values()), torch.zeros(0, dtype=torch.int8)
        return {
            "samples": torch.tensor(list(self._own), dtype=torch.int64),
            "sizes": torch.tensor([list(part.numbers.shape) for part in own]).reshape(-1, 2),
            "numbers": torch.cat([none, *(part.numbers.ravel() for part in own)]),
            "steps": torch.cat([torch.zeros(0), *(part.steps for part in own)]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave, as far as it fits."""
        self.forget()
        shapes = state["sizes"].tolist()
        numbers = torch.split(state["numbers"], [rows * width for rows, width in shapes])
        steps = torch.split(state["steps"], [rows for rows, _ in shapes])
        samples = state["samples"].tolist()
        for sample, shape, own, step in zip(samples, shapes, numbers, steps, strict=True):
            self.keep([sample], [shape[0]], Levels(own.view(*shape), step))


def _nbytes(levels: Levels | None) -> int:
    return 0 if levels is None else levels.numbers.nbytes + levels.steps.nbytes


def _digest(levels: Levels | None) -> int:
    if levels is None:
        return _NONE
    first = zlib.crc32(np.asarray(levels.steps.numpy(), "<f4").tobytes())
    return zlib.crc32(levels.numbers.numpy().tobytes(), first) or 1
