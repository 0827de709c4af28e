"""``entropy``: one step for all numbers of a payload, and an entropy code: few bits where they pay.

Rows are rotated (``fedlora.link.rotation``) and rounded to whole multiples of one step, however
many of them it takes, which Huffman's code (deflate's, from zlib) then writes: small rows take
hardly any bits, and large ones as many as they need. For one squared error in all that is the
fewest bits among scalar quantisers with one code (Gish and Pierce 1968), where ``rotated`` spends
the same bits on each row. ``bits`` is about what a number takes.

===========  ========================================================================
``y``        the rotated numbers, of root mean square ``sigma``
``step``     sqrt(2 pi e) 2^-bits sigma, at which a Gaussian's multiples have an entropy of
             ``bits``; max |y| / 127 if that is more; rounded up to bfloat16
``k``        -127 .. 127, which stands for y = step k
===========  ========================================================================

Rounded to the nearest multiple (``encode``), a rotated number is off by at most half a step; at
random (``encode_drawn``), every number read is unbiased. The step depends on the whole payload, so
a row that is sent again in another one has other levels: activations, which may be asked for again,
cannot use it. The same bytes give the same tensor everywhere, as with ``rotated``.

What is sent names its profile: ``.ent1-b3.5-g128-s0``: version, bits, largest group, seed.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from fedlora.errors import FedloraError, ProtocolError
from fedlora.link.codec import Codec
from fedlora.link.rotation import GROUPS, Rotation, hadamard_matrix, round_up, uniform

VERSION = 1
_STEP = ".step"
_MOST = 127
_PROFILE = re.compile(r"\.ent(\d{1,3})-b(\d(?:\.\d{1,3})?)-g(\d{1,4})-s(\d{1,10})")


class EntropyCodec(Codec):
    """See the module.

    Parameters
    ----------
    bits
        That a number takes, about: 2 to 6, and what lies between.
    group
        As for ``RotatedCodec``; no scale belongs to it.
    seed
        Of the signs that this side writes with.

    Raises
    ------
    FedloraError
        When one is out of range.
    """

    joins_rows: ClassVar[bool] = True

    def __init__(self, bits: float = 4, group: int = 128, seed: int = 0) -> None:
        if isinstance(bits, bool) or not 2 <= bits <= 6 or round(bits, 3) != bits:
            raise FedloraError(
                f"entropy was given {bits!r:.40} bits; give it 2 to 6, of three decimals at most"
            )
        if group not in GROUPS:
            told = ", ".join(map(str, GROUPS))
            raise FedloraError(f"entropy was given groups of {group!r:.40}; choose one of {told}")
        self.bits, self.group, self.seed = bits, group, seed
        self._share = math.sqrt(2 * math.pi * math.e) * 2.0**-bits

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """See ``Codec``; to the nearest multiple."""
        return self._encode(x, None)

    def encode_drawn(self, x: torch.Tensor, key: bytes) -> dict[str, torch.Tensor]:
        """See ``Codec``; up or down at random, so that what is read is unbiased."""
        return self._encode(x, key)

    def decode(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        """See ``Codec``."""
        suffix, seed = self._profile(parts)
        rotation = Rotation(*shape, self.group)
        step, stream = parts[_STEP], parts[suffix]
        if step.dtype != torch.bfloat16 or step.shape != (1,) or float(step) < 0:
            raise ProtocolError("payload needs one step, a bfloat16 from 0")
        if stream.dtype != torch.uint8 or stream.dim() != 1:
            raise ProtocolError(f"payload part is of {stream.dtype}, expected a line of uint8")
        levels = _read(stream, rotation.numbers)
        # whole numbers below 2^16, so that no order of the sums matters
        x = levels.view(-1, rotation.group) @ hadamard_matrix(rotation.group)
        return rotation.back(x.mul_(step.float() / rotation.group), seed)

    def _encode(self, x: torch.Tensor, key: bytes | None) -> dict[str, torch.Tensor]:
        y = Rotation(len(x), x.shape[1], self.group).forward(x, self.seed).numpy()
        step = self._step(y)
        finite = math.isfinite(step)
        if finite and step > 0:
            y /= np.float32(step)
            y += 0.5 if key is None else uniform(key, y.size).numpy().reshape(y.shape)
            np.floor(y, out=y).clip(-_MOST, _MOST, out=y)
        else:
            y[...] = 0  # a step that is not finite tells whoever reads it
        y += _MOST
        levels = y.astype(np.uint8)
        huffman = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
        stream = huffman.compress(levels.tobytes()) + huffman.flush()
        name = f".ent{VERSION}-b{self.bits:g}-g{self.group}-s{self.seed}"
        return {
            name: torch.from_numpy(np.frombuffer(bytearray(stream), np.uint8)),
            _STEP: torch.tensor([step], dtype=torch.bfloat16),
        }

    def _step(self, y: npt.NDArray[np.float32]) -> float:
        """Return the step of rotated numbers, a bfloat16."""
        if not y.size:
            return 0.0
        with np.errstate(invalid="ignore"):  # the square of infinity
            size = math.sqrt(float(np.square(y, dtype=np.float64).mean()))
        step = max(self._share * size, float(np.abs(y).max()) / _MOST)
        return float(round_up(torch.tensor([step])))

    def _profile(self, parts: Mapping[str, torch.Tensor]) -> tuple[str, int]:
        """Return which part holds the levels, with the seed of its signs."""
        found = [(suffix, match) for suffix in parts if (match := _PROFILE.fullmatch(suffix))]
        if len(parts) != 2 or len(found) != 1 or _STEP not in parts:
            raise ProtocolError(
                f"payload has parts {sorted(parts)!s:.80}, expected a profile like .ent1-b4-g128-s0"
                " and .step; both sides must name one codec"
            )
        suffix, match = found[0]
        version, bits, group = int(match[1]), float(match[2]), int(match[3])
        if (version, bits, group) != (VERSION, self.bits, self.group):
            raise ProtocolError(
                f"payload has profile {suffix}, expected .ent{VERSION}-b{self.bits:g}-g{self.group}"
                "; give both sides one release, and the same bits and group"
            )
        return suffix, int(match[4])


def _read(stream: torch.Tensor, count: int) -> torch.Tensor:
    """Return the levels of so many numbers as fp32."""
    huffman = zlib.decompressobj(-15)
    try:
        levels = np.frombuffer(huffman.decompress(stream.numpy().tobytes(), count + 1), np.uint8)
    except zlib.error as error:
        raise ProtocolError(f"payload is not in Huffman's code ({error})") from None
    if len(levels) != count or not huffman.eof or huffman.unused_data:
        raise ProtocolError(f"payload has other than the expected {count} levels")
    if count and int(levels.max()) > 2 * _MOST:
        raise ProtocolError(f"payload has a level beyond {2 * _MOST}")
    return torch.from_numpy(levels.astype(np.float32)).sub_(_MOST)
