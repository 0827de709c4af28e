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
import numpy.typing as npt
import torch

_NONE = 0  # the digest of what is not there
_UNKNOWN = -1.0
_STEP = 4  # bytes
_ENTRY = 160  # bytes that Python takes of a sample beside its levels: two objects and their place


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
        The most that is kept, with what Python takes for it.

    Attributes
    ----------
    nbytes
        What is kept, so counted.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.nbytes = limit_bytes, 0
        self._numbers = 0  # of a row
        # fp32 steps of a sample's rows and then their levels, as bytes: a tensor takes more for
        # itself than a row of levels
        self._own: dict[int, bytes] = {}

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
        numbers, steps = levels.numbers.numpy(), np.asarray(levels.steps.numpy(), "<f4")
        if numbers.shape[1] != self._numbers:
            self.forget()
            self._numbers = numbers.shape[1]
        last = 0
        for sample, size in zip(samples, sizes, strict=True):
            first, last = last, last + size
            before = self._own.pop(sample, None)
            own = steps[first:last]
            if before is not None:
                self.nbytes -= len(before) + _ENTRY
            most = self.limit_bytes - self.nbytes
            if bool((own >= 0).all()) and levels_bytes(size, self._numbers) <= most:
                self._own[sample] = own.tobytes() + numbers[first:last].tobytes()
                self.nbytes += levels_bytes(size, self._numbers)

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
        same = [True] * len(samples) if told is None else (self.digests(samples) == told).tolist()
        steps, lines = [], []
        for sample, size, alike in zip(samples, sizes, same, strict=True):
            own = self._own.get(sample, b"") if alike and numbers == self._numbers else b""
            if not own or len(own) != size * (_STEP + numbers):
                own = np.full(size, _UNKNOWN, "<f4").tobytes() + bytes(size * numbers)
            steps.append(own[: _STEP * size])
            lines.append(own[_STEP * size :])
        return Levels(
            torch.from_numpy(_line(lines, np.int8).reshape(-1, numbers)),
            torch.from_numpy(_line(steps, "<f4").astype(np.float32, copy=False)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, for the end's own disk."""
        own, a_row = list(self._own.values()), _STEP + self._numbers
        rows = [len(part) // a_row for part in own]
        steps = [part[: _STEP * size] for part, size in zip(own, rows, strict=True)]
        lines = [part[_STEP * size :] for part, size in zip(own, rows, strict=True)]
        shapes = [[size, self._numbers] for size in rows]
        return {
            "samples": torch.tensor(list(self._own), dtype=torch.int64),
            "sizes": torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2),
            "numbers": torch.from_numpy(_line(lines, np.int8)),
            "steps": torch.from_numpy(_line(steps, "<f4").astype(np.float32, copy=False)),
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


def levels_bytes(rows: int, numbers: int) -> int:
    """Return what a sample takes in ``KeptLevels``.

    Parameters
    ----------
    rows
        Of the sample.
    numbers
        Levels of a row.
    """
    return rows * (_STEP + numbers) + _ENTRY


def _line(parts: Sequence[bytes], kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return numbers of which the bytes are in parts, in memory that may be written to."""
    return np.frombuffer(bytearray().join(parts), kind)


def _digest(own: bytes | None) -> int:
    return _NONE if own is None else zlib.crc32(own) or 1
