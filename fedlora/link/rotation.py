"""A random rotation of rows in groups, which spreads single large channels, and its inverse.

Each group of a row is multiplied by random signs and by Hadamard's matrix, as in QuaRot (Ashkboos
et al. 2024) and in randomised Hadamard mean estimation (Suresh et al. 2017). After it the numbers
of a group are close to Gaussian.

========  ==================================================================
``s``     signs, +1 or -1, from SHAKE-256 of a seed
``H``     Hadamard's matrix, entries +1 or -1, of ``group`` rows
``y``     H (s x): the group's numbers, rotated; x = s H y / group
========  ==================================================================
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

GROUPS: Final = (16, 32, 64, 128, 256)
LEAST_SCALE: Final = 2.0**-100
"""Below it, floats lose digits."""
_INNER = 16
_NARROW = 64  # narrower rows are cut into groups together, where they do not fit


@dataclass(frozen=True)
class Rotation:
    """How rows of one shape are cut into groups and rotated.

    Attributes
    ----------
    rows, width
        Shape of the payload.
    most
        Largest group: 16 to 256, a power of two. A width that is no multiple of it takes the
        largest such group that divides it. Where none does, zeros fill the row up, or rows below 64
        numbers are cut into groups one after the other.
    """

    rows: int
    width: int
    most: int

    @cached_property
    def flat(self) -> bool:
        """Whether rows are too narrow for groups of their own."""
        return self.width < _NARROW and self.width % GROUPS[0] != 0

    @cached_property
    def group(self) -> int:
        """Numbers that are rotated together."""
        width = self._line
        fitting = [g for g in GROUPS if g <= self.most and width % g == 0]
        return fitting[-1] if fitting else min(self.most, max(GROUPS[0], _power_above(width)))

    @cached_property
    def padded(self) -> int:
        """Numbers of a line of groups, with those that fill the last one."""
        return math.ceil(self._line / self.group) * self.group

    @cached_property
    def numbers(self) -> int:
        """Numbers of all groups."""
        return self.padded if self.flat else self.rows * self.padded

    @cached_property
    def _line(self) -> int:
        return self.rows * self.width if self.flat else self.width

    def forward(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        """Return the rotated groups of rows, shape (groups, group)."""
        x = x.to("cpu", torch.float32)
        if self.flat:
            x = x.reshape(1, -1)
        if self.padded > x.shape[1]:
            x = torch.nn.functional.pad(x, (0, self.padded - x.shape[1]))
        return hadamard((x * _signs(seed, self.padded)).view(-1, self.group))

    def back(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        """Return rows of groups that Hadamard's matrix has been applied to, shape (rows, width)."""
        lines = x.view(self.numbers // self.padded if self.padded else 0, self.padded)
        lines.mul_(_signs(seed, self.padded))
        if self.flat:
            return lines.flatten()[: self._line].view(self.rows, self.width)
        return lines[:, : self.width].contiguous()


def _power_above(width: int) -> int:
    return 1 << max(0, width - 1).bit_length()


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """Return rows times Hadamard's matrix, by additions alone, each in a fixed order.

    A matrix product may add in another order in another batch or on another machine. NumPy's calls
    cost less than torch's, and there are two for each doubling.
    """
    half, rows = x.shape[1] // 2, x.shape[0]
    # rows side by side, so that each call runs over memory in order
    y = np.ascontiguousarray(x.numpy().T)
    other = np.empty_like(y)
    while half:
        old, new = (part.reshape(x.shape[1] // half // 2, 2, half * rows) for part in (y, other))
        with np.errstate(over="ignore", invalid="ignore"):  # whoever quantises tells of it
            np.add(old[:, 0], old[:, 1], out=new[:, 0])
            np.subtract(old[:, 0], old[:, 1], out=new[:, 1])
        y, other = other, y
        half //= 2
    return torch.from_numpy(np.ascontiguousarray(y.T))


@cache
def hadamard_matrix(group: int) -> torch.Tensor:
    """Return Hadamard's matrix of so many rows, which is its own transpose."""
    return hadamard(torch.eye(group))


def hadamard_of_whole(x: torch.Tensor) -> torch.Tensor:
    """Return rows of small whole numbers times Hadamard's matrix: exact, so in any order.

    The matrix is the Kronecker product of two smaller ones, which take fewer products.
    """
    group = x.shape[1]
    if group < 4 * _INNER:
        return x @ hadamard_matrix(group)
    inner = (x.reshape(-1, _INNER) @ hadamard_matrix(_INNER)).view(-1, group // _INNER, _INNER)
    return torch.matmul(hadamard_matrix(group // _INNER), inner).view(-1, group)


@lru_cache(maxsize=32)  # the seed of what is read is its sender's to choose, anew each time
def _signs(seed: int, width: int) -> torch.Tensor:
    """Return +1 or -1 for each number of a row."""
    digest = hashlib.shake_256(f"fedlora rotated {seed}".encode()).digest(math.ceil(width / 8))
    bits = np.unpackbits(np.frombuffer(digest, np.uint8), count=width)
    return torch.from_numpy(1 - 2 * bits.astype(np.float32))


def round_up(scale: torch.Tensor) -> torch.Tensor:
    """Return the next bfloat16 that is not below a scale, in fp32; 0 stays 0."""
    scale = torch.where(scale > 0, scale.clamp_min(LEAST_SCALE), scale)
    return scale.view(torch.int32).add(0xFFFF).bitwise_and(~0xFFFF).view(torch.float32)


def round_up_one(scale: float) -> float:
    """Return the same of one scale that is not below 0."""
    bits = np.array([max(scale, LEAST_SCALE) if scale > 0 else scale], np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    return float(rounded.view(np.float32)[0])


def uniform(key: bytes, count: int) -> torch.Tensor:
    """Return numbers from 0 up to 1, of 24 bits, from a ChaCha20 key stream."""
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    words = np.frombuffer(stream.update(bytes(4 * count)), "<u4") >> np.uint32(8)
    return torch.from_numpy(words.astype(np.float32)).mul_(2.0**-24)
