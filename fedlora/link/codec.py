"""Codecs: how a (tokens, width) tensor is written into a frame, and checked when it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from fedlora.errors import ProtocolError
from fedlora.registry import make, resolve


class Codec(ABC):
    """Encodes a float tensor of shape (rows, width) as named parts and back."""

    @abstractmethod
    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of a (rows, width) tensor, by suffix (``""`` for a single part)."""

    @abstractmethod
    def decode(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        """Return the fp32 tensor; raise ``ProtocolError`` for parts of another shape or dtype."""


class Fp32Codec(Codec):
    """32-bit floating point: exact."""

    dtype = torch.float32

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """See ``Codec``."""
        return {"": x.to(self.dtype)}

    def decode(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        """See ``Codec``."""
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
        levels = _checked(parts, ".int8", torch.int8, shape)
        scale = _checked(parts, ".scale", torch.float32, (shape[0], 1))
        return levels.to(torch.float32) * scale


def create_codec(name: str, key: str = "") -> Codec:
    """Return the codec that a scenario names, under ``key`` if an error is to say so.

    Raises
    ------
    FedloraError
        When no codec has this name, it is none, or cannot be made.
    """
    codec: Codec = make(resolve("codecs", name, Codec, key=key), key or "codec", {})
    return codec


def pack(name: str, x: torch.Tensor, codec: Codec) -> dict[str, torch.Tensor]:
    """Return the tensors of a frame that carry ``x`` (any shape; the last axis is the width)."""
    parts = codec.encode(x.detach().reshape(-1, x.shape[-1]))
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
    parts = {k[len(name) :]: t for k, t in tensors.items() if k.partition(".")[0] == name}
    x = codec.decode(parts, shape)
    if not torch.isfinite(x).all():
        raise ProtocolError(
            f"{name} holds NaN or infinity, as where training diverges; lower train.lr, or mend "
            "the sender's weights and data"
        )
    return x


def _checked(
    parts: Mapping[str, torch.Tensor], suffix: str, dtype: torch.dtype, shape: tuple[int, int]
) -> torch.Tensor:
    part = parts.get(suffix)
    if part is None or len(parts) > 2:
        raise ProtocolError(f"payload has parts {sorted(parts)}; both sides must name one codec")
    if part.dtype != dtype or tuple(part.shape) != shape:
        raise ProtocolError(
            f"payload part is {tuple(part.shape)} of {part.dtype}, expected {shape} of {dtype}"
        )
    return part
