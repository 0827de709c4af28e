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

Rows whose levels the reader has of an earlier time (``fedlora.link.levels``) are written as what is
left of them, under a name that ends in ``-r``: AQ-SGD's differences (Wang et al. 2022), but for
levels, so that what is read does not depend on them. With ``k'`` and ``step'`` of that time:

=============  ======================================================================
``slope``      <k, k'> / <k', k'>, from 0 to 2, a bfloat16: one for all of a payload
``r``          k - round((k' (step' / step)) slope), modulo 256; each operation rounded to fp32
=============  ======================================================================

Where only some rows are known, ``.based`` has a bit for each row, the first one highest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import huffman
from fedlora.link.codec import RememberingCodec
from fedlora.link.huffman import Bytes
from fedlora.link.levels import Levels
from fedlora.link.rotation import GROUPS, Rotation, hadamard_of_whole, round_up_one, uniform

VERSION = 1
_STEP, _SLOPE, _BASED, _LEFT = ".step", ".slope", ".based", "-r"
_MOST, _MOST_SLOPE = 127, 2.0
_PROFILE = re.compile(r"\.ent(\d{1,3})-b(\d(?:\.\d{1,3})?)-g(\d{1,4})-s(\d{1,10})(-r)?")


class EntropyCodec(RememberingCodec):
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
        rotation = Rotation(*shape, self.group)
        return self._decode(parts, rotation, Levels.unknown(shape[0], 0))[0]

    def remembers(self, width: int) -> int:
        """See ``RememberingCodec``; narrow rows are rotated together."""
        rotation = Rotation(1, width, self.group)
        return 0 if rotation.flat else rotation.padded

    def encode_beside(
        self, x: torch.Tensor, known: Levels
    ) -> tuple[dict[str, torch.Tensor], Levels]:
        """See ``RememberingCodec``; to the nearest multiple."""
        levels, step = self._quantised(x, None)
        lines = levels.reshape(known.numbers.shape)
        based = known.known.numpy()
        parts = {_STEP: torch.tensor([step], dtype=torch.bfloat16)}
        if not math.isfinite(step):  # a step that is not finite tells whoever reads it
            return {self._name(): _written(lines), **parts}, Levels.unknown(*lines.shape)
        if not based.all() or not based.size:
            parts[self._name()] = _written(lines[~based])
        if based.any():
            own, centred = known, lines.astype(np.int16) - _MOST
            if not based.all():
                own = Levels(known.numbers[known.known], known.steps[known.known])
                centred = centred[based]
            likely = _likely(own, step)
            slope = _slope(centred, likely)
            left = centred - _foreseen(likely, float(slope))
            parts |= {self._name() + _LEFT: _written(left.astype(np.uint8)), _SLOPE: slope}
            if not based.all():
                parts[_BASED] = torch.from_numpy(np.packbits(based))
        return parts, _levels(lines, step)

    def decode_beside(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], known: Levels
    ) -> tuple[torch.Tensor, Levels]:
        """See ``RememberingCodec``."""
        return self._decode(parts, Rotation(*shape, self.group), known)

    def _decode(
        self, parts: Mapping[str, torch.Tensor], rotation: Rotation, known: Levels
    ) -> tuple[torch.Tensor, Levels]:
        whole, left, seed = self._profile(parts)
        step = _number(parts, _STEP)
        if left is None:
            assert whole is not None
            levels = _checked(huffman.read(parts[whole], rotation.numbers))
        else:
            levels = self._from_left(parts, whole, left, rotation, known)
        # whole numbers below 2^16, so that no order of the sums matters
        centred = torch.from_numpy(levels.astype(np.float32)).sub_(_MOST)
        x = hadamard_of_whole(centred.view(-1, rotation.group))
        remembered = known
        if known.numbers.shape[1] == rotation.padded and math.isfinite(step):
            remembered = _levels(levels.reshape(rotation.rows, rotation.padded), step)
        return rotation.back(x.mul_(torch.tensor(step) / rotation.group), seed), remembered

    def _from_left(
        self,
        parts: Mapping[str, torch.Tensor],
        whole: str | None,
        left: str,
        rotation: Rotation,
        known: Levels,
    ) -> Bytes:
        """Return the levels of a payload of which some rows are written as what is left."""
        based = np.ones(rotation.rows, bool)
        if whole is not None:
            packed = parts[_BASED]
            if packed.dtype != torch.uint8 or packed.shape != (math.ceil(rotation.rows / 8),):
                raise ProtocolError("which rows are differences is told by a bit for each")
            based = np.unpackbits(packed.numpy(), count=rotation.rows).astype(bool)
        rows = torch.from_numpy(based)
        fits = not rotation.flat and known.numbers.shape[1] == rotation.padded
        if not (fits and bool(known.known[rows].all())):
            raise ProtocolError("payload has differences to rows that are not known here")
        own = known if whole is None else Levels(known.numbers[rows], known.steps[rows])
        step, slope = _number(parts, _STEP), _number(parts, _SLOPE)
        if not math.isfinite(step) or not slope <= _MOST_SLOPE:
            raise ProtocolError(f"payload has a step of {step} and a slope of {slope}")
        read = huffman.read(parts[left], own.numbers.numel())
        # modulo 256, as bytes are
        found = read + (_foreseen(_likely(own, step), slope).ravel() + _MOST).astype(np.uint8)
        if whole is not None:
            lines = np.empty((rotation.rows, rotation.padded), np.uint8)
            lines[based] = found.reshape(-1, rotation.padded)
            rest = huffman.read(parts[whole], int((~based).sum()) * rotation.padded)
            lines[~based] = rest.reshape(-1, rotation.padded)
            found = lines.ravel()
        return _checked(found)

    def _encode(self, x: torch.Tensor, key: bytes | None) -> dict[str, torch.Tensor]:
        levels, step = self._quantised(x, key)
        return {
            self._name(): _written(levels),
            _STEP: torch.tensor([step], dtype=torch.bfloat16),
        }

    def _quantised(self, x: torch.Tensor, key: bytes | None) -> tuple[Bytes, float]:
        """Return levels, from 0, and the step of one."""
        y = Rotation(len(x), x.shape[1], self.group).forward(x, self.seed).numpy()
        step = self._step(y)
        if math.isfinite(step) and step > 0:
            y /= np.float32(step)
            y += 0.5 if key is None else uniform(key, y.size).numpy().reshape(y.shape)
            np.floor(y, out=y).clip(-_MOST, _MOST, out=y)
        else:
            y[...] = 0  # a step that is not finite tells whoever reads it
        y += _MOST
        return y.astype(np.uint8), step

    def _name(self) -> str:
        return f".ent{VERSION}-b{self.bits:g}-g{self.group}-s{self.seed}"

    def _step(self, y: npt.NDArray[np.float32]) -> float:
        """Return the step of rotated numbers, a bfloat16."""
        if not y.size:
            return 0.0
        peak = max(float(y.max()), -float(y.min()))
        if not math.isfinite(peak):
            return math.nan
        size = math.sqrt(float(np.square(y, dtype=np.float64).mean()))
        return round_up_one(max(self._share * size, peak / _MOST))

    def _profile(self, parts: Mapping[str, torch.Tensor]) -> tuple[str | None, str | None, int]:
        """Return which parts hold levels and what is left of some, with the seed of the signs."""
        found = [(part, match) for part in parts if (match := _PROFILE.fullmatch(part))]
        named = {bool(match[5]): (part, match) for part, match in found}
        fixed = {_STEP} | ({_SLOPE} if True in named else set())
        fixed |= {_BASED} if len(named) == 2 else set()
        if not found or len(found) > len(named) or set(parts) != fixed | {p for p, _ in found}:
            raise ProtocolError(
                f"payload has parts {sorted(parts)!s:.80}, expected a profile like .ent1-b4-g128-s0"
                " and .step; both sides must name one codec"
            )
        for part, match in found:
            version, bits, group = int(match[1]), float(match[2]), int(match[3])
            if (version, bits, group) != (VERSION, self.bits, self.group):
                raise ProtocolError(
                    f"payload has profile {part}, expected .ent{VERSION}-b{self.bits:g}-"
                    f"g{self.group}; give both sides one release, and the same bits and group"
                )
        seeds = {int(match[4]) for _, match in found}
        if len(seeds) > 1:
            raise ProtocolError("payload has two seeds of signs; both parts are rotated by one")
        whole, left = (named[way][0] if way in named else None for way in (False, True))
        return whole, left, seeds.pop()


def _levels(lines: Bytes, step: float) -> Levels:
    numbers = torch.from_numpy((lines.astype(np.int16) - _MOST).astype(np.int8))
    return Levels(numbers, torch.full((len(lines),), step))


def _likely(known: Levels, step: float) -> npt.NDArray[np.float32]:
    """Return what levels of before are in steps of now.

    Every operation here and in ``_foreseen`` is one of IEEE 754 on single numbers, which rounds
    alike everywhere.
    """
    if step == 0:
        return np.zeros(known.numbers.shape, np.float32)
    with np.errstate(over="ignore"):
        ratio = np.minimum(known.steps.numpy() / np.float32(step), np.float32(2 * _MOST))
    likely: npt.NDArray[np.float32] = known.numbers.numpy() * ratio[:, None]
    return likely


def _slope(centred: npt.NDArray[np.int16], likely: npt.NDArray[np.float32]) -> torch.Tensor:
    """Return by how much levels of before foretell those of now, shape (1,) of bfloat16."""
    power = float(np.square(likely).sum())
    slope = float((likely * centred).sum()) / power if power > 0 else 0.0
    return torch.tensor([min(max(slope, 0.0), _MOST_SLOPE)], dtype=torch.bfloat16)


def _foreseen(likely: npt.NDArray[np.float32], slope: float) -> npt.NDArray[np.int16]:
    """Return what levels are foreseen, in whole numbers from -127 to 127."""
    own = likely * np.float32(slope)
    np.rint(own, out=own).clip(-_MOST, _MOST, out=own)
    return own.astype(np.int16)


def _number(parts: Mapping[str, torch.Tensor], suffix: str) -> float:
    """Return the step or slope of a payload: a bfloat16 that is not below 0; it may be none."""
    part = parts[suffix]
    if part.dtype != torch.bfloat16 or part.shape != (1,) or float(part) < 0:
        raise ProtocolError(f"payload needs one {suffix[1:]}, a bfloat16 from 0")
    return float(part)


def _written(levels: Bytes) -> torch.Tensor:
    return torch.from_numpy(huffman.write(levels))


def _checked(levels: Bytes) -> Bytes:
    """Return levels that are none beyond the last."""
    if levels.size and int(levels.max()) > 2 * _MOST:
        raise ProtocolError(f"payload has a level beyond {2 * _MOST}")
    return levels
