"""Codecs: how a (tokens, width) tensor is written into a frame, and checked when it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from fedlora.blame import blaming, is_ours
from fedlora.errors import FedloraError, ProtocolError, shown
from fedlora.link.levels import Levels
from fedlora.registry import make, resolve, signature_of


class Codec(ABC):
    """Encodes a float tensor of shape (rows, width) as named parts and back.

    Attributes
    ----------
    merges_repeats
        Whether ``encode`` writes rows once that are equal, as ``fedlora.link.distinct`` does.
    names_tokens
        Whether it writes which token a row stands for, as ``fedlora.link.tokens`` does.
    joins_rows
        Whether what it writes of a row depends on the others in its payload, so that activations,
        which may be asked for again, cannot use it.
    """

    merges_repeats: ClassVar[bool] = False
    names_tokens: ClassVar[bool] = False
    joins_rows: ClassVar[bool] = False

    @abstractmethod
    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of a (rows, width) tensor, by suffix (``""`` for a single part)."""

    def encode_drawn(self, x: torch.Tensor, key: bytes) -> dict[str, torch.Tensor]:
        """Return the parts of a tensor that must not be biased, as of a gradient.

        Parameters
        ----------
        x
            Shape (rows, width).
        key
            32 bytes from which a codec that rounds at random draws; another rounds as ``encode``.
        """
        del key
        return self.encode(x)

    @abstractmethod
    def decode(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        """Return the fp32 tensor; raise ``ProtocolError`` for parts of another shape or dtype."""


class RememberingCodec(Codec):
    """A codec that writes rows as differences to what it wrote of them before.

    What is read, and what is then remembered, is that of ``encode`` and ``decode``, whatever was
    known: it changes the bits that travel alone.
    """

    @abstractmethod
    def remembers(self, width: int) -> int:
        """Return the levels of a row of this width; 0 where its rows are not written apart."""

    @abstractmethod
    def encode_beside(
        self, x: torch.Tensor, known: Levels
    ) -> tuple[dict[str, torch.Tensor], Levels]:
        """Return the parts of a tensor as ``encode`` does, and the levels that they stand for.

        Parameters
        ----------
        x
            Shape (rows, width).
        known
            What the reader has of each row.
        """

    @abstractmethod
    def decode_beside(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], known: Levels
    ) -> tuple[torch.Tensor, Levels]:
        """Return the fp32 tensor and its levels.

        Parameters
        ----------
        parts, shape
            As for ``decode``.
        known
            What the reader has of each row; whoever wrote the parts may have known less.

        Raises
        ------
        ProtocolError
            As ``decode`` does, and for differences to what is not known.
        """


class Fp32Codec(Codec):
    """32-bit floating point: exact."""

    dtype = torch.float32

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """See ``Codec``."""
        return {"": x.to(self.dtype)}

    def decode(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        """See ``Codec``."""
        _named(parts, "")
        return _checked(parts, "", self.dtype, shape).to(torch.float32)


class Bf16Codec(Fp32Codec):
    """bfloat16: half the bits, 8 bits of mantissa."""

    dtype = torch.bfloat16


class Int8Codec(Codec):
    """8-bit integers with one fp32 scale per token (absolute maximum over 127)."""

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """See ``Codec``."""
        x = x.to(torch.float32)
        scale = x.abs().amax(dim=1, keepdim=True) / 127
        levels = (x / scale.clamp_min(torch.finfo(torch.float32).tiny)).round()
        return {".int8": levels.clamp(-127, 127).to(torch.int8), ".scale": scale}

    def decode(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        """See ``Codec``."""
        _named(parts, ".int8", ".scale")
        levels = _checked(parts, ".int8", torch.int8, shape)
        scale = _checked(parts, ".scale", torch.float32, (shape[0], 1))
        return levels.to(torch.float32) * scale


def create_codec(name: str, key: str = "codec", **options: Any) -> Codec:
    """Return the codec of a payload; ``LinkConfig.codec`` has the arguments.

    Parameters
    ----------
    name
        A registered name, or ``module:Class``.
    key
        The scenario's key that names it, such as ``link.gradient``.
    options
        ``bits`` of a number, where they are chosen, and ``group``, ``seed`` and ``vocabulary`` (the
        token embedding, where it is at hand), which are given to codecs that take them.

    Raises
    ------
    FedloraError
        When no codec has this name, it is none, cannot be made, or has no bits to choose.
    """
    kind = resolve("codecs", name, Codec, key=key)
    taken = signature_of(kind).parameters
    if "bits" in options and "bits" not in taken:
        raise FedloraError(
            f"{key}_bits is {options['bits']}, and {key} is {name}, which has bits of its own; set "
            f"{key} to rotated, or leave {key}_bits at 0"
        )
    if kind.joins_rows and key == "link.activation":
        raise FedloraError(
            f"{key} is {name}, which writes a row otherwise in another batch, and activations may "
            "be asked for again; choose another codec, such as rotated"
        )
    given = {option: value for option, value in options.items() if option in taken}
    try:
        codec: Codec = make(kind, key, given)
    except FedloraError as error:
        told = str(error)
        raise error if key in told else FedloraError(f"{key}: {told}") from None
    return codec


def codec_profile(name: str, key: str = "codec", **options: int) -> str:
    """Return what two sides must have alike to read each other, in a few words.

    Parameters
    ----------
    name, key, options
        As for ``create_codec``. The seed of signs is told by what is written.
    """
    taken = signature_of(resolve("codecs", name, Codec, key=key)).parameters
    told = [f"{o} {v}" for o, v in options.items() if o in taken and o != "seed"]
    return ", ".join([name, *told])


def pack(
    name: str, x: torch.Tensor, codec: Codec, key: bytes | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors of a frame that carry a tensor.

    Parameters
    ----------
    name
        What they are called.
    x
        Any shape; the last axis is the width.
    codec
        Writes it.
    key
        32 bytes where it must not be biased; see ``Codec.encode_drawn``.
    """
    rows = x.detach().reshape(-1, x.shape[-1])
    with blaming(f"{_title(codec)} of {name}", type(codec)):
        parts = codec.encode(rows) if key is None else codec.encode_drawn(rows, key)
    return _tensors(name, parts, codec)


def pack_beside(
    name: str, x: torch.Tensor, codec: RememberingCodec, known: Levels
) -> tuple[dict[str, torch.Tensor], Levels]:
    """Return the same where the reader has levels of the rows, and the levels that are sent."""
    with blaming(f"{_title(codec)} of {name}", type(codec)):
        parts, levels = codec.encode_beside(x.detach().reshape(-1, x.shape[-1]), known)
    return _tensors(name, parts, codec), levels


def _tensors(name: str, parts: object, codec: Codec) -> dict[str, torch.Tensor]:
    if not isinstance(parts, dict) or not all(isinstance(p, torch.Tensor) for p in parts.values()):
        raise FedloraError(
            f"{_title(codec)} of {name} returns a {type(parts).__name__} from encode(); expected a "
            "dict of tensors by suffix"
        )
    for suffix, part in parts.items():
        if not isinstance(suffix, str) or suffix.partition(".")[0]:
            raise FedloraError(
                f"{_title(codec)} of {name} calls a part {shown(suffix)} in encode(); expected a "
                "suffix that is empty or begins with a dot"
            )
        if part.layout != torch.strided or part.is_meta or part.is_quantized:
            raise FedloraError(
                f"{_title(codec)} of {name} returns {part.dtype} ({part.layout}, {part.device}) "
                "from encode(); expected dense tensors"
            )
    return {name + suffix: part for suffix, part in parts.items()}


def unpack(
    tensors: Mapping[str, torch.Tensor], name: str, codec: Codec, shape: tuple[int, int]
) -> torch.Tensor:
    """Return the (rows, width) tensor that a frame carries under ``name``.

    Raises
    ------
    ProtocolError
        When it is missing, has another shape or dtype than announced, or is not finite.
    """
    return _read(tensors, name, codec, shape, codec.decode)


def unpack_beside(
    tensors: Mapping[str, torch.Tensor],
    name: str,
    codec: RememberingCodec,
    shape: tuple[int, int],
    known: Levels,
) -> tuple[torch.Tensor, Levels]:
    """Return the same where levels of the rows are known, and the levels that were sent."""
    levels: list[Levels] = []

    def decode(parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        x, own = codec.decode_beside(parts, shape, known)
        levels.append(own)
        return x

    return _read(tensors, name, codec, shape, decode), levels[0]


def _read(
    tensors: Mapping[str, torch.Tensor],
    name: str,
    codec: Codec,
    shape: tuple[int, int],
    decode: Callable[[Mapping[str, torch.Tensor], tuple[int, int]], torch.Tensor],
) -> torch.Tensor:
    parts = {k[len(name) :]: t for k, t in tensors.items() if k.partition(".")[0] == name}
    try:
        with blaming(f"{_title(codec)} of {name}", type(codec)):
            x = decode(parts, shape)
    except ProtocolError:
        raise
    except FedloraError as error:  # of parts that a peer may have made on purpose
        raise ProtocolError(str(error)) from error
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32 or tuple(x.shape) != shape:
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
        raise FedloraError(
            f"{_title(codec)} of {name} returns {what:.60} from decode(); expected torch.float32 "
            f"of shape {shape}"
        )
    if not torch.isfinite(x).all():
        ours = is_ours(type(codec))
        what, mend = (name, "") if ours else (f"{name}, as {_title(codec)} has it,", "the codec, ")
        raise ProtocolError(
            f"{what} holds NaN or infinity, as where training diverges; lower train.lr, or mend "
            f"{mend}the sender's weights and data"
        )
    return x


def _named(parts: Mapping[str, torch.Tensor], *suffixes: str) -> None:
    if parts.keys() != set(suffixes):
        raise ProtocolError(
            f"payload has parts {sorted(parts)!r:.200}; both sides must name one codec"
        )


def _checked(
    parts: Mapping[str, torch.Tensor], suffix: str, dtype: torch.dtype, shape: tuple[int, int]
) -> torch.Tensor:
    part = parts[suffix]
    if part.dtype != dtype or tuple(part.shape) != shape:
        raise ProtocolError(
            f"payload part is {tuple(part.shape)} of {part.dtype}, expected {shape} of {dtype}"
        )
    return part


def _title(codec: Codec) -> str:
    return f"the codec {type(codec).__module__}:{type(codec).__name__}"
