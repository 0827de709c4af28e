"""Rows that occur more than once in a payload travel once: exact, and nothing else is told by it.

The activation of a token at the token embedding depends on the token alone, so a batch of texts has
many rows that are equal bit for bit, as whoever receives them sees anyway. ``distinct`` is fp32
with each row once, and which of them stands where.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedlora.errors import ProtocolError
from fedlora.link.codec import Codec

PLACES = ".place"
"""Part that says for each row which of those that are sent it is."""
_DTYPES = ((1 << 8, torch.uint8), (1 << 15, torch.int16), (1 << 31, torch.int32))


class DistinctCodec(Codec):
    """32-bit floating point, each row once."""

    merges_repeats = True

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """See ``Codec``."""
        rows, places = merged(x.to("cpu", torch.float32))
        return {"": rows, **places}

    def decode(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        """See ``Codec``."""
        rows = parts.get("")
        if rows is None or set(parts) - {"", PLACES} or rows.dtype != torch.float32:
            raise ProtocolError(
                f"payload has parts {sorted(parts)!s:.80}, expected rows of float32"
            )
        if rows.shape != (sent_rows(parts, shape[0]), shape[1]):
            raise ProtocolError(f"payload part is {tuple(rows.shape)}, expected rows of {shape}")
        return spread(rows, parts)


def merged(x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the rows of a payload that differ, and the part that says which stands where.

    Parameters
    ----------
    x
        Shape (rows, width), fp32 on the CPU.

    Returns
    -------
    tuple
        The rows, each once, and the part, if any row occurs twice.
    """
    if x.numel() == 0:
        return x, {}
    bits = x.detach().contiguous().view(torch.int32)  # -0.0 is not 0.0
    _, places, counts = torch.unique(bits[:, 0], return_inverse=True, return_counts=True)
    if len(counts) == len(x):  # no two begin alike
        return x, {}
    first = torch.full((len(counts),), len(x)).scatter_reduce(
        0, places, torch.arange(len(x)), "amin"
    )
    if not torch.equal(bits[first[places]], bits):  # some begin alike and go on differently
        _, places = torch.unique(bits, dim=0, return_inverse=True)
        first = torch.full((int(places.max()) + 1,), len(x)).scatter_reduce(
            0, places, torch.arange(len(x)), "amin"
        )
    if len(first) == len(x):
        return x, {}
    return x[first], {PLACES: places.to(_dtype(len(first)))}


def places_bits(rows: int, distinct: int) -> int:
    """Return the bits of the part that says which of so many distinct rows stands where."""
    return 0 if distinct >= rows else rows * 8 * _dtype(distinct).itemsize


def sent_rows(parts: Mapping[str, torch.Tensor], rows: int) -> int:
    """Return how many rows a payload has to hold for so many to be made of it.

    Raises
    ------
    ProtocolError
        When what says which stands where is of another length or type, or leaves one out.
    """
    places = parts.get(PLACES)
    if places is None:
        return rows
    if places.shape != (rows,) or places.dtype not in {dtype for _, dtype in _DTYPES}:
        raise ProtocolError(f"which row stands where is told for each of the expected {rows} rows")
    sent = int(places.max()) + 1 if rows else 0
    if rows and (int(places.min()) < 0 or sent >= rows or len(torch.unique(places)) != sent):
        raise ProtocolError("which row stands where is told by numbers from 0, each of them used")
    return sent


def spread(sent: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return all rows of a payload, from those that were sent."""
    places = parts.get(PLACES)
    return sent if places is None else sent[places.long()]


def _dtype(distinct: int) -> torch.dtype:
    return next(dtype for most, dtype in _DTYPES if distinct <= most)
