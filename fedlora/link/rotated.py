"""``rotated``: 2 to 12 bits a number, after a random rotation, with a scale for each group.

A row is cut into groups of ``group`` numbers. Each is multiplied by random signs and by Hadamard's
matrix, which spreads single large channels over the group (as in QuaRot, Ashkboos et al. 2024, and
in randomised Hadamard mean estimation, Suresh et al. 2017), and rounded to one of 2^bits levels
between the ends of its range. Bytes are written with Huffman's code (deflate's, from zlib) where
that takes less than ``bits`` each; levels of more than 8 bits are written as they are.

===========  ========================================================================
``s``        signs, +1 or -1, from SHAKE-256 of the seed in the profile
``H``        Hadamard's matrix, entries +1 or -1, of ``group`` rows
``y``        H (s x): the group's numbers, rotated
``scale``    max |y| / (2^bits - 1), rounded up to bfloat16
``k``        level 0 .. 2^bits - 1, which stands for y = scale (2 k - 2^bits + 1)
``x``        s H (2 k - 2^bits + 1) scale / group, as it is read
===========  ========================================================================

Reading takes sums of whole numbers below 2^22, exact in fp32, and one product, so the same bytes
give the same tensor everywhere. A group is written from its own numbers alone, so a row
of 64 numbers or more that is sent again has the same levels. Rounded to the nearest level
(``encode``), a number of the rotated group is off by at most its scale, and equal rows are written
once (``fedlora.link.distinct``). Rounded at random (``encode_drawn``), every number read is
unbiased.

What is sent names its profile: ``.rot1-b4-g128-s0``, that is version, bits, largest group and seed
of the signs, with ``-h`` for Huffman's code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import torch

from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import huffman, wide_levels
from fedlora.link.codec import Codec
from fedlora.link.distinct import PLACES, merged, sent_rows, spread
from fedlora.link.huffman import Bytes
from fedlora.link.rotation import (
    GROUPS,
    LEAST_SCALE,
    Rotation,
    hadamard_of_whole,
    round_up,
    uniform,
)

VERSION = 1
BITS = range(2, 13)
_PROFILE = re.compile(r"\.rot(\d{1,3})-b(\d{1,2})-g(\d{1,4})-s(\d{1,10})(-h)?")


class RotatedCodec(Codec):
    """See the module.

    Parameters
    ----------
    bits
        Of a number, 2 to 12, before Huffman's code.
    group
        Numbers that share a scale and are rotated together: 16 to 256, a power of two. A width that
        is no multiple of it takes the largest such group that divides it. Where none does, zeros
        fill the row up, or rows below 64 numbers are cut into groups one after the other.
    seed
        Of the signs that this side writes with; those of what is read stand in its profile.

    Raises
    ------
    FedloraError
        When one is out of range.
    """

    merges_repeats = True

    def __init__(self, bits: int = 6, group: int = 128, seed: int = 0) -> None:
        if bits not in BITS:
            raise FedloraError(f"rotated was given {bits!r:.40} bits; give it 2 to 12")
        if group not in GROUPS:
            told = ", ".join(map(str, GROUPS))
            raise FedloraError(f"rotated was given groups of {group!r:.40}; choose one of {told}")
        self.bits, self.group, self.seed = bits, group, seed
        self._most, self._wide = (1 << bits) - 1, bits > 8

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """See ``Codec``; to the nearest level, and equal rows once."""
        rows, places = merged(x.to("cpu", torch.float32))
        return self._encode(rows, None) | places

    def encode_drawn(self, x: torch.Tensor, key: bytes) -> dict[str, torch.Tensor]:
        """See ``Codec``; up or down at random, so that what is read is unbiased."""
        return self._encode(x, key)

    def decode(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        """See ``Codec``."""
        rows = sent_rows(parts, shape[0])
        own = {suffix: part for suffix, part in parts.items() if suffix != PLACES}
        return spread(self._decode(own, (rows, shape[1])), parts)

    def _decode(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        suffix, seed, coded = self._profile(parts)
        rotation = Rotation(*shape, self.group)
        group, count = rotation.group, rotation.numbers
        scale = _part(parts, ".scale", torch.bfloat16, count // group).to(torch.float32)
        if scale.numel() and float(scale.min()) < 0:
            raise ProtocolError("payload has a scale below 0; no codec writes one")
        stream = parts[suffix]
        if stream.dtype != torch.uint8 or stream.dim() != 1:
            raise ProtocolError(f"payload part is of {stream.dtype}, expected a line of uint8")
        if self._wide:
            levels = wide_levels.read(stream.numpy(), count, self.bits).astype(np.float32)
        else:
            levels = self._read(stream.numpy(), count, coded=coded).astype(np.float32)
        # Whole numbers below 2^22, so that no order of the sums matters. The levels' common offset
        # is a vector of equal numbers, all of which the matrix takes to the first column.
        x = hadamard_of_whole(torch.from_numpy(levels).view(-1, group)).mul_(2)
        x[:, 0] -= self._most * group
        x.mul_((scale / group)[:, None])
        return rotation.back(x, seed)

    def _encode(self, x: torch.Tensor, key: bytes | None) -> dict[str, torch.Tensor]:
        y = Rotation(len(x), x.shape[1], self.group).forward(x, self.seed)
        scale = round_up(torch.linalg.vector_norm(y, torch.inf, dim=1).div_(self._most))
        y.div_((2 * scale).clamp_min(LEAST_SCALE)[:, None])
        if key is None:
            y.add_((self._most + 1) / 2)  # what is left after the point is cut off
        else:
            y.add_(uniform(key, y.numel()).view_as(y)).add_(self._most / 2)
        if not torch.isfinite(scale).all():
            y.zero_()  # the scale tells whoever reads it
        levels = y.clamp_(0, self._most).flatten()
        if self._wide:
            whole = levels.to(torch.int16).numpy().view(np.uint16)
            stream, coded = wide_levels.write(whole, self.bits), False
        else:
            stream, coded = self._write(levels.to(torch.uint8).numpy())
        name = f".rot{VERSION}-b{self.bits}-g{self.group}-s{self.seed}{'-h' if coded else ''}"
        return {name: torch.from_numpy(stream), ".scale": scale.to(torch.bfloat16)}

    def _profile(self, parts: Mapping[str, torch.Tensor]) -> tuple[str, int, bool]:
        """Return which part holds the levels, with the seed of its signs and how it is written."""
        found = [(suffix, match) for suffix in parts if (match := _PROFILE.fullmatch(suffix))]
        if len(parts) != 2 or len(found) != 1:
            raise ProtocolError(
                f"payload has parts {sorted(parts)!s:.80}, expected a profile like .rot1-b4-g128-s0"
                " and .scale; both sides must name one codec"
            )
        suffix, match = found[0]
        version, bits, group, seed = map(int, match.groups()[:4])
        if (version, bits, group) != (VERSION, self.bits, self.group):
            raise ProtocolError(
                f"payload has profile {suffix}, expected .rot{VERSION}-b{self.bits}-g{self.group}; "
                "give both sides one release, and the same bits and group"
            )
        if self._wide and match[5]:
            raise ProtocolError(f"payload has profile {suffix}, and such levels have no code")
        return suffix, seed, match[5] is not None

    def _write(self, levels: Bytes) -> tuple[Bytes, bool]:
        """Return levels as bytes, and whether these are Huffman's."""
        coded = huffman.write(levels)
        if len(coded) < math.ceil(len(levels) * self.bits / 8):
            return coded, True
        return np.packbits(np.unpackbits(levels[:, None], axis=1)[:, 8 - self.bits :]), False

    def _read(self, stream: Bytes, count: int, *, coded: bool) -> Bytes:
        if not coded:
            if len(stream) != math.ceil(count * self.bits / 8):
                raise ProtocolError(
                    f"payload has {len(stream)} bytes of levels, expected {count} of {self.bits} "
                    "bits"
                )
            bits = np.unpackbits(stream, count=count * self.bits).reshape(count, self.bits)
            return np.packbits(bits, axis=1).ravel() >> np.uint8(8 - self.bits)
        levels = huffman.read(torch.from_numpy(stream), count)
        if count and int(levels.max()) > self._most:
            raise ProtocolError(f"payload has a level beyond those of {self.bits} bits")
        return levels


def _part(
    parts: Mapping[str, torch.Tensor], suffix: str, dtype: torch.dtype, length: int
) -> torch.Tensor:
    part = parts.get(suffix)
    if part is None or part.dtype != dtype or tuple(part.shape) != (length,):
        told = "none" if part is None else f"{tuple(part.shape)} of {part.dtype}"
        raise ProtocolError(f"payload part {suffix} is {told}, expected {(length,)} of {dtype}")
    return part
