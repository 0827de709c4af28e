"""Tokens in place of their embeddings: exact, and by far the fewest bits (``link.activation``).

At the token embedding a token's smashed data are a row of a frozen matrix that the server has, too.
``tokens`` sends which row it is, in as many bits as number the vocabulary. The nearest row tells a
server the same of any exact activation, so nothing more is told; but it is the text, said plainly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from fedlora.errors import FedloraError, ProtocolError
from fedlora.link.codec import Codec

_PART = ".token"
_CHUNK = 1 << 14  # rows of the vocabulary that are read at a time


class Vocabulary(Protocol):
    """A frozen token embedding: ``fedlora.split.TokenEmbedding``.

    Attributes
    ----------
    weight
        Shape (vocabulary, width).
    """

    weight: torch.nn.Parameter

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Map token ids (tokens,) to rows (tokens, width)."""


class TokensCodec(Codec):
    """Numbers of the rows of a token embedding that both sides hold.

    Parameters
    ----------
    vocabulary
        The embedding; without it nothing can be written or read.
    """

    names_tokens: ClassVar[bool] = True

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        self._vocabulary = vocabulary

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """See ``Codec``.

        Raises
        ------
        FedloraError
            When a row is none of the embedding's.
        """
        return {_PART: _packed(self._ids(x.detach().to("cpu", torch.float32)), self._size)}

    def decode(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        """See ``Codec``."""
        part = parts.get(_PART)
        if part is None or len(parts) > 1:
            raise ProtocolError(f"payload has parts {sorted(parts)!s:.80}, expected tokens alone")
        expected = token_bytes(shape[0], self._size)
        if part.dtype != torch.uint8 or part.shape != (expected,):
            raise ProtocolError(
                f"payload part is {tuple(part.shape)} of {part.dtype}, expected {expected} bytes "
                f"for {shape[0]} tokens"
            )
        ids = _unpacked(part, shape[0], self._size)
        if len(ids) and int(ids.max()) >= self._size:
            raise ProtocolError(f"token {int(ids.max())} of a vocabulary of {self._size}")
        rows = self._embedding(ids).detach().float()
        if rows.shape != shape:
            raise ProtocolError(f"tokens are rows of {rows.shape[1]}, expected {shape[1]}")
        return rows

    @property
    def _embedding(self) -> Vocabulary:
        if self._vocabulary is None:
            raise FedloraError(
                "link.activation is tokens, and no token embedding is at hand here; choose another "
                "codec, such as distinct"
            )
        return self._vocabulary

    @property
    def _size(self) -> int:
        return len(self._embedding.weight)

    def _ids(self, x: torch.Tensor) -> torch.Tensor:
        """Return a number of the embedding's row for each row of (tokens, width)."""
        keys, ids = self._index()
        places = torch.searchsorted(keys, _keys(x)).clamp(max=len(keys) - 1)
        found = ids[places]
        rows = self._embedding(found).detach().float()
        if rows.shape != x.shape or not torch.equal(rows.view(torch.int32), x.view(torch.int32)):
            raise FedloraError(
                "link.activation is tokens, and an activation is no row of the token embedding; "
                "choose another codec, such as distinct"
            )
        return found

    def _index(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys of the embedding's rows in order, and whose they are."""
        if self._embedding not in _INDEXES:
            chunks = torch.split(torch.arange(self._size), _CHUNK)
            found = torch.cat([_keys(self._embedding(ids).detach().float()) for ids in chunks])
            _INDEXES[self._embedding] = torch.sort(found, stable=True)
        return _INDEXES[self._embedding]


# Of each embedding once, which all clients of a process share; it does not train.
_INDEXES: WeakKeyDictionary[Vocabulary, tuple[torch.Tensor, torch.Tensor]] = WeakKeyDictionary()


def token_bytes(tokens: int, vocabulary: int) -> int:
    """Return the bytes that tokens of a vocabulary of so many take."""
    return math.ceil(tokens * _bits(vocabulary) / 8)


def _bits(vocabulary: int) -> int:
    return max(1, (vocabulary - 1).bit_length())


def _keys(rows: torch.Tensor) -> torch.Tensor:
    """Return a number of 64 bits for each row, which two that differ share by accident alone."""
    generator = torch.Generator().manual_seed(rows.shape[1])
    odd = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator) * 2 + 1
    return (rows.contiguous().view(torch.int32).long() * odd).sum(1)


def _packed(ids: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return ids in the bits that number the vocabulary, the first and the highest bit first."""
    bits = _bits(vocabulary)
    planes = ids.numpy()[:, None] >> np.arange(bits - 1, -1, -1) & 1
    return torch.from_numpy(np.packbits(planes.astype(np.uint8).reshape(-1)))


def _unpacked(part: torch.Tensor, tokens: int, vocabulary: int) -> torch.Tensor:
    bits = _bits(vocabulary)
    planes = np.unpackbits(part.numpy(), count=tokens * bits).reshape(tokens, bits)
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    return torch.from_numpy(planes.astype(np.int64) @ weights)
