"""How many bits the codecs of a scenario take for a payload of a shape."""

from __future__ import annotations

import math

import torch

from fedlora.config import ENDS, PAYLOADS, End, LinkConfig, Payload
from fedlora.link import (
    WIDTH as ENDS_WIDTH,
    Levels,
    RememberingCodec,
    create_codec,
    ends_rows,
    pack,
    places_bits,
    token_bytes,
)

_STEP = 1.3  # between the numbers of rows that are encoded; others lie on the line between two
_EXACT = 8  # so few rows are encoded each
_DRAWN = 128  # rows by which it is found what is left of rows that were sent before


class PayloadBits:
    """Bits of payloads, found by encoding Gaussian numbers.

    Most codecs take so many bits a row, whatever is in it. Where a codec writes likely levels in
    fewer bits, what is in it matters; after a rotation it is close to Gaussian.

    Parameters
    ----------
    link
        Names the codecs.
    vocabulary
        Tokens of the model.
    """

    def __init__(self, link: LinkConfig, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        named = (*PAYLOADS, *ENDS)
        self._codecs = {payload: create_codec(**link.codec(payload)) for payload in named}
        self._exact_ends = {end: link.codec(end)["name"] == "fp32" for end in ENDS}
        self._known: dict[tuple[Payload | End, int, int], int] = {}

    def remembered(self, width: int) -> int:
        """Return the levels of a representation's row of this width that both ends remember."""
        codec = self._codecs["representation"]
        return codec.remembers(width) if isinstance(codec, RememberingCodec) else 0

    def of_end(self, end: End, numbers: int) -> int:
        """Return the bits of so many numbers of a head or front that clients share."""
        if self._exact_ends[end]:
            return 32 * numbers
        return self(end, ends_rows(numbers), ENDS_WIDTH)

    def of_tokens(self, payload: Payload, tokens: int, distinct: int, width: int) -> int:
        """Return the bits of tokens' rows, of which so many differ."""
        if self._codecs[payload].names_tokens:
            return 8 * token_bytes(tokens, self._vocabulary)
        if not self._codecs[payload].merges_repeats or distinct >= tokens:
            return self(payload, tokens, width)
        return self(payload, distinct, width) + places_bits(tokens, distinct)

    def left(self, width: int, change: float) -> float:
        """Return the bits of what is left of representations over those of the whole.

        Parameters
        ----------
        width
            Numbers of a row.
        change
            By how much each has changed since it was sent, over the root mean square of all.
        """
        codec = self._codecs["representation"]
        if not isinstance(codec, RememberingCodec):
            return 1.0
        draw = torch.Generator().manual_seed(width)
        before, more = (torch.randn(_DRAWN, width, generator=draw) for _ in range(2))
        unknown = Levels.unknown(_DRAWN, codec.remembers(width))
        whole, levels = codec.encode_beside(before, unknown)
        now = (before + change * more) / math.sqrt(1 + change * change)
        left, _ = codec.encode_beside(now, levels)
        first, last = (sum(part.nbytes for part in parts.values()) for parts in (whole, left))
        return min(1.0, last / first)

    def __call__(self, payload: Payload | End, rows: int, width: int) -> int:
        """Return the bits of a payload of shape (rows, width)."""
        if rows <= 0:
            return 0
        if rows <= _EXACT:
            return self._encoded(payload, rows, width)
        place = math.floor(math.log(rows / _EXACT, _STEP) + 1e-9)
        low, high = (math.ceil(_EXACT * _STEP ** (place + more)) for more in (0, 1))
        low = min(low, rows)
        first, last = (self._encoded(payload, number, width) for number in (low, high))
        return first + round((last - first) * (rows - low) / (high - low))

    def _encoded(self, payload: Payload | End, rows: int, width: int) -> int:
        key = (payload, rows, width)
        if key not in self._known:
            x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
            drawn = bytes(32) if payload in ("gradient", "end_gradient") else None
            parts = pack("x", x, self._codecs[payload], drawn)
            self._known[key] = sum(8 * part.nbytes for part in parts.values())
        return self._known[key]
