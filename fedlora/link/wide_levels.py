"""Levels of more than 8 bits, one after the other, most significant bit first."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from fedlora.errors import ProtocolError

_WORD: Final = 16

Wide = npt.NDArray[np.uint16]


def write(levels: Wide, bits: int) -> npt.NDArray[np.uint8]:
    """Return levels of so many bits each, 9 to 16, as bytes; the last one ends in zeros."""
    words = levels.astype(">u2").view(np.uint8).reshape(-1, 2)
    return np.packbits(np.unpackbits(words, axis=1)[:, _WORD - bits :])


def read(stream: npt.NDArray[np.uint8], count: int, bits: int) -> Wide:
    """Return so many levels of so many bits each.

    Raises
    ------
    ProtocolError
        When it is longer or shorter.
    """
    if len(stream) != math.ceil(count * bits / 8):
        raise ProtocolError(
            f"payload has {len(stream)} bytes of levels, expected {count} of {bits} bits"
        )
    words = np.zeros((count, _WORD), np.uint8)
    words[:, _WORD - bits :] = np.unpackbits(stream, count=count * bits).reshape(count, bits)
    return np.packbits(words, axis=1).view(">u2").ravel().astype(np.uint16)
