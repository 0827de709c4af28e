"""What rate a client's link carries, measured by sending through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MOST_BYTES: Final = 1 << 20  # one way, of a single exchange
_FIRST_BYTES: Final = 1 << 14
_LONG_S: Final = 0.25  # beyond which a transfer is not made any longer
_SHORTEST_S: Final = 1e-4
_ROUND_TRIPS: Final = 3

Exchange = Callable[[int, int], float]
"""Sends bytes up, has others sent down, and returns the seconds until they were there."""


@dataclass(frozen=True)
class LinkRate:
    """What was measured.

    Attributes
    ----------
    up_bps, down_bps
        Rates in bit/s, as a large frame sees them.
    round_trip_s
        Time of an empty exchange, in seconds.
    """

    up_bps: float
    down_bps: float
    round_trip_s: float


def measure(exchange: Exchange, most_bytes: int = MOST_BYTES) -> LinkRate:
    """Measure both directions, one after the other.

    Transfers grow until one takes a quarter of a second longer than an empty exchange, so that a
    link of 10 Mbit/s is measured in about a second with 0.3 MB each way, and a fast one is not
    taken for slower than it is.

    Parameters
    ----------
    exchange
        See ``Exchange``.
    most_bytes
        Longest transfer.
    """
    round_trip_s = min(exchange(0, 0) for _ in range(_ROUND_TRIPS))
    rates = []
    for up in (True, False):
        size, took_s = min(_FIRST_BYTES, most_bytes), 0.0
        while True:
            took_s = exchange(size, 0) if up else exchange(0, size)
            if took_s - round_trip_s >= _LONG_S or size >= most_bytes:
                break
            size = min(4 * size, most_bytes)
        rates.append(8 * size / max(took_s - round_trip_s, _SHORTEST_S))
    return LinkRate(rates[0], rates[1], round_trip_s)
