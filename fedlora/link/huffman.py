"""Huffman's code for levels of one byte, as zlib writes it in a deflate stream without matches."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
import torch

from fedlora.errors import ProtocolError

Bytes = npt.NDArray[np.uint8]


def write(levels: Bytes) -> Bytes:
    """Return levels in Huffman's code."""
    huffman = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(bytearray(huffman.compress(levels.tobytes()) + huffman.flush()), np.uint8)


def read(stream: torch.Tensor, count: int) -> Bytes:
    """Return so many levels; no more of a stream is read than these.

    Raises
    ------
    ProtocolError
        When it is no line of bytes, not in Huffman's code, or holds other than so many levels.
    """
    if stream.dtype != torch.uint8 or stream.dim() != 1:
        raise ProtocolError(f"payload part is of {stream.dtype}, expected a line of uint8")
    huffman = zlib.decompressobj(-15)
    try:
        levels = np.frombuffer(huffman.decompress(stream.numpy().tobytes(), count + 1), np.uint8)
    except zlib.error as error:
        raise ProtocolError(f"payload is not in Huffman's code ({error})") from None
    if len(levels) != count or not huffman.eof or huffman.unused_data:
        raise ProtocolError(f"payload has other than the expected {count} levels")
    return levels
