"""How fast a round can be, and with which bandwidth for whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from fedlora.channel.schedule.base import ClientLoad
from fedlora.channel.state import ChannelState

_NEWTON_STEPS = 100
_TOLERANCE = 1e-12
_EXPONENT_MAX = 500.0  # no link has e^500 of SNR, and c u must stay below what a float holds
_SMALL_RATIO = 1e-5


@dataclass(frozen=True)
class DelayCurves:
    """How long each client's round takes, as a function of its bandwidth.

    A client of bandwidth b takes ``compute_s + sum over directions of bits / (b log2(1 + c/b))``:
    its transmit power is fixed, and c is the bandwidth in Hz times the SNR that it reported, so
    that its rate at the reported bandwidth is the reported one.

    Attributes
    ----------
    compute_s
        Computing time in seconds, of shape (clients,).
    bits, snr_hz
        Payload in bits and c in Hz, of shape (2, clients), uplink first.
    """

    compute_s: np.ndarray
    bits: np.ndarray
    snr_hz: np.ndarray

    @classmethod
    def of(
        cls,
        clients: Sequence[int],
        reports: Mapping[int, ChannelState],
        loads: Mapping[int, ClientLoad],
    ) -> DelayCurves:
        """Return the curves of the clients, in their order."""
        own_hz = np.array([reports[k].bandwidth_hz for k in clients])
        rates = np.array(
            [
                [reports[k].up_rate_bps for k in clients],
                [reports[k].down_rate_bps for k in clients],
            ]
        )
        bits = [[loads[k].up_bits for k in clients], [loads[k].down_bits for k in clients]]
        return cls(
            np.array([loads[k].compute_s for k in clients]),
            np.array(bits, dtype=float),
            own_hz * np.expm1(np.minimum(rates / own_hz * math.log(2), _EXPONENT_MAX)),
        )

    def delay_s(self, bandwidth_hz: float) -> np.ndarray:
        """Return each client's delay in seconds at one bandwidth, of shape (clients,)."""
        air_s, _ = self._air(np.full(len(self.compute_s), 1 / bandwidth_hz))
        return np.asarray(self.compute_s + air_s)

    def least_bandwidth_hz(self, delay_s: float, total_hz: float) -> np.ndarray:
        """Return the bandwidth that each client needs to be ready in time, of shape (clients,).

        Clients that the total bandwidth does not make fast enough get infinity.

        Parameters
        ----------
        delay_s
            When all have to be ready, in seconds.
        total_hz
            Largest bandwidth, in Hz.
        """
        # Air time is concave and rising in u = 1/b, so Newton's method from the left never
        # overshoots.
        inverse = np.full(len(self.compute_s), 1 / total_hz)
        slack_s = delay_s - self.compute_s
        air_s, slope = self._air(inverse)
        able = air_s <= slack_s
        idle = able & (self.bits.sum(0) == 0)
        moving = able & ~idle
        for _ in range(_NEWTON_STEPS):
            step = np.where(moving, slack_s - air_s, 0.0) / np.where(moving, slope, 1.0)
            inverse = inverse + np.maximum(step, 0.0)
            if np.all(step <= _TOLERANCE * inverse):
                break
            air_s, slope = self._air(inverse)
        return np.where(able, np.where(idle, 0.0, 1 / inverse), math.inf)

    def _air(self, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the air time of each client and its derivative with respect to u = 1/b."""
        ratio = self.snr_hz * inverse
        octaves = np.log1p(ratio) / math.log(2)
        air_s = self.bits * inverse / octaves
        # 1 - r / (1 + r) / log(1 + r) is r / 2 for small r, where its digits cancel
        bend = np.where(ratio < _SMALL_RATIO, ratio / 2, 1 - ratio / (1 + ratio) / np.log1p(ratio))
        slope = self.bits * bend / octaves
        return air_s.sum(0), slope.sum(0)


def fastest_round(
    curves: DelayCurves, count: int, total_hz: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the fastest round of a given number of clients, over all sets and all divisions.

    Within a delay, the clients that need the least bandwidth are the ones to take; so the smallest
    delay is where the least bandwidths of the ``count`` most modest clients add up to the total.

    Parameters
    ----------
    curves
        How long each client's round takes.
    count
        Number of clients in the round, from 1 to all.
    total_hz
        Bandwidth to divide in each direction, in Hz.

    Returns
    -------
    delay_s, chosen, bandwidth_hz
        The round's delay in seconds; positions of the chosen clients, and their bandwidth in Hz,
        which adds up to the total, both of shape (count,).
    """

    def excess(delay_s: float) -> float:
        needed = curves.least_bandwidth_hz(delay_s, total_hz)
        return float(np.sort(needed)[:count].sum() / total_hz - 1)

    # No set is faster than its slowest client with all bandwidth, or slower than equal shares.
    low_s = float(np.sort(curves.delay_s(total_hz))[count - 1]) * (1 + 1e-12)
    equal_s = curves.delay_s(total_hz / count)
    modest = np.argsort(equal_s, kind="stable")[:count]
    high_s = float(equal_s[modest[-1]]) * (1 + 1e-9)
    if not excess(high_s) <= 0:  # links too far apart for the arithmetic
        return high_s, modest, np.full(count, total_hz / count)
    delay_s = low_s if excess(low_s) <= 0 else float(brentq(excess, low_s, high_s, xtol=1e-12))
    needed = curves.least_bandwidth_hz(delay_s, total_hz)
    chosen = np.argsort(needed, kind="stable")[:count]
    bandwidth_hz = needed[chosen]
    spent_hz = bandwidth_hz.sum()
    scale = total_hz / spent_hz if spent_hz else 1.0
    return delay_s, chosen, bandwidth_hz * scale
