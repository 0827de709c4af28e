"""Sending a payload over a channel that may fade meanwhile."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from fedlora.channel.channel import Channel
from fedlora.config import MOST_WALKED_BLOCKS

_LATEST_BLOCK = 10_000


@dataclass
class Walk:
    """What payloads of one client and direction have met of a round's fading.

    Attributes
    ----------
    blocks
        Fading blocks that were looked at.
    bits, seconds
        What they carried, and in which time.
    """

    blocks: int = 0
    bits: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Delivery:
    """What became of a payload.

    Attributes
    ----------
    delivered
        Whether all of it arrived within the deadline.
    seconds
        Air time spent on it: until it arrived, or until the deadline.
    bits_sent
        Bits that were sent in that time.
    """

    delivered: bool
    seconds: float
    bits_sent: int


def deliver(
    channel: Channel,
    bits: int,
    client: int,
    round: int,
    *,
    start_s: float = 0.0,
    deadline_s: float = math.inf,
    direction: str = "down",
    bandwidth_hz: float | None = None,
    walk: Walk | None = None,
) -> Delivery:
    """Send a payload at the true rate of each fading block until it is through or late.

    Links in a deep fade have no end: after 1,000 blocks what is not through, and what follows it in
    the same round and direction, goes on at their mean rate. What starts later in a round than
    after 10,000 blocks meets the fading of that time.

    Parameters
    ----------
    channel
        The channel of the run.
    bits
        Size of the payload.
    client, round
        Indices of the client and the round.
    start_s
        When the transmission starts, in seconds after the round does.
    deadline_s
        Latency budget, in seconds after ``start_s``.
    direction
        ``up`` or ``down``.
    bandwidth_hz
        Bandwidth of the client where a scheduler set it.
    walk
        Of the payloads before it in this round and direction; it is gone on with.
    """
    walk = Walk() if walk is None else walk
    block_s = channel.config.block_s if channel.fades_within_round else math.inf
    start_s = min(start_s, _LATEST_BLOCK * block_s)
    left, elapsed_s = float(bits), 0.0
    first = math.floor(start_s / block_s)
    for block in itertools.count(first):
        if walk.blocks < MOST_WALKED_BLOCKS or not walk.seconds:
            # Rounding may put the start on the wrong side of a block's end.
            lasts_s = max(0.0, (block + 1) * block_s - start_s - elapsed_s)
            middle_s = 0.0 if math.isinf(block_s) else (block + 0.5) * block_s
            rate_bps = channel.truth(client, round, middle_s, bandwidth_hz).rate_bps(direction)
            walk.blocks += channel.fades_within_round
        else:
            lasts_s, rate_bps = math.inf, walk.bits / walk.seconds
        needed_s, budget_s = left / rate_bps, deadline_s - elapsed_s
        spent_s = min(needed_s, lasts_s, budget_s)
        walk.bits += rate_bps * spent_s
        walk.seconds += spent_s
        if needed_s <= min(lasts_s, budget_s):
            return Delivery(True, elapsed_s + needed_s, bits)
        if budget_s <= lasts_s:
            return Delivery(False, deadline_s, math.floor(bits - left + rate_bps * budget_s))
        left -= rate_bps * lasts_s
        elapsed_s += lasts_s
    raise AssertionError("a count has no end")


def communication_cost(bits: float, rate_bps: float, deadline_s: float) -> float:
    """Return the share of a latency budget that a payload takes; above 1 it is late.

    AirLLM's cost ``c = bits / max(C T, 1)`` (released code).

    Parameters
    ----------
    bits
        Size of the payload.
    rate_bps
        Rate of the link, in bit/s.
    deadline_s
        Latency budget, in seconds.
    """
    return bits / max(rate_bps * deadline_s, 1.0)
