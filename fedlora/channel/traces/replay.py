"""From a recording to what a link is at a time: what was not measured is refused, or held."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fedlora.channel.traces.track import PACKET_BITS, Link, Packets, Track
from fedlora.errors import FedloraError


@dataclass(frozen=True)
class Held:
    """Values of which each is in force until the next; all repeats with the period."""

    start_s: np.ndarray
    values: np.ndarray
    period_s: float

    def at(self, time_s: float) -> float:
        """Return the value in force at a time."""
        # A block begins with its row, and the series with its period, although a float may put
        # either a little before; its error grows with the time.
        slack_s = 1e-9 + 1e-15 * time_s
        within_s = math.fmod(time_s + slack_s, self.period_s)
        return float(self.values[np.searchsorted(self.start_s, within_s, side="right") - 1])


class Rate(Protocol):
    """What a link carries over time."""

    period_s: float

    def bits(self, start_s: float, stop_s: float) -> float:
        """Return what it carries from one time to another."""

    def outage_s(self) -> tuple[float, float]:
        """Return when it carries nothing for longest, and for how long, both in seconds."""


class HeldRate:
    """Rates of which each is in force until the next; all repeats with the period.

    Parameters
    ----------
    start_s
        When each begins, in seconds; the first is 0.
    rates_bps
        In bit/s.
    period_s
        When all begins anew, in seconds.
    """

    def __init__(self, start_s: np.ndarray, rates_bps: np.ndarray, period_s: float) -> None:
        self._start_s, self._rates_bps, self.period_s = start_s, rates_bps, period_s
        carried = np.cumsum(rates_bps * np.diff(start_s, append=period_s))
        self._before = np.append(0.0, carried)

    def bits(self, start_s: float, stop_s: float) -> float:
        """Return what the link carries from one time to another."""
        begin = start_s - self.period_s * math.floor(start_s / self.period_s)
        return self._until(begin + stop_s - start_s) - self._until(begin)

    def _until(self, time_s: float) -> float:
        periods, within_s = divmod(time_s, self.period_s)
        row = int(np.searchsorted(self._start_s, within_s, side="right")) - 1
        part = float(self._rates_bps[row]) * (within_s - float(self._start_s[row]))
        return periods * float(self._before[-1]) + float(self._before[row]) + part

    def outage_s(self) -> tuple[float, float]:
        """Return when the link carries nothing for longest, and for how long, both in seconds."""
        sending = np.flatnonzero(self._rates_bps > 0)
        if not len(sending):
            return 0.0, math.inf
        stop_s = np.append(self._start_s[1:], self.period_s)[sending]
        next_s = np.append(self._start_s[sending][1:], self._start_s[sending][0] + self.period_s)
        longest = int(np.argmax(next_s - stop_s))
        return float(stop_s[longest]), float((next_s - stop_s)[longest])


class PacketRate:
    """Packets that come through at their milliseconds, as mahimahi lets them.

    What one period ends with comes at the moment at which the next begins.

    Parameters
    ----------
    packets
        When, in the first period.
    """

    def __init__(self, packets: Packets) -> None:
        self._time_ms = packets.time_ms
        self.period_s = packets.period_s

    def bits(self, start_s: float, stop_s: float) -> float:
        """Return what comes from one time on, until before another."""
        return PACKET_BITS * float(self._until(stop_s) - self._until(start_s))

    def _until(self, time_s: float) -> int:
        """Return how many packets come before a time."""
        # A block that ends with a millisecond ends before what comes at it.
        time_ms = time_s * 1000 * (1 - 1e-15) - 1e-6
        if time_ms < 0:
            return 0
        last = int(self._time_ms[-1])
        periods, within_ms = divmod(time_ms, last)
        own = int(np.searchsorted(self._time_ms, within_ms, side="right"))
        return int(periods) * len(self._time_ms) + own

    def outage_s(self) -> tuple[float, float]:
        """Return when nothing comes for longest, and for how long, both in seconds."""
        again = self._time_ms[-1] + self._time_ms[0]
        waits = np.diff(self._time_ms, append=again)
        longest = int(np.argmax(waits))
        return float(self._time_ms[longest]) / 1000, float(waits[longest]) / 1000


def choose(link: Link, names: tuple[str, ...]) -> str:
    """Return the first of some names under which a link has values; empty where it has none."""
    if isinstance(link, Packets):
        return "rate_bps" if "rate_bps" in names else ""
    return next((name for name in names if name in link.values), "")


def known(
    path: Path, track: Track, name: str, *, missing: str = "refuse", idle: str = "refuse"
) -> np.ndarray:
    """Return values of a track of which each is known, or was said how to take it.

    Parameters
    ----------
    path
        The file, for messages.
    track, name
        Which values.
    missing
        ``refuse``, or ``hold`` the value before over what the file marks as missing, and over gaps.
    idle
        Of rates, where nobody sent or nothing came: ``refuse``, ``hold`` the rate before, or take
        it as an ``outage``.

    Raises
    ------
    FedloraError
        When values are missing, or links idle, and nobody said how to take that; when there is no
        value.
    """
    values = np.array(track.values[name])
    gaps = np.flatnonzero(track.gap_s)
    if len(gaps) and missing == "refuse":
        at = int(gaps[0])
        usual_s = float(np.median(track.duration_s))
        raise FedloraError(
            f"trace {path} has a gap of {track.gap_s[at]:g} s after line {track.lines[at]} where "
            f"rows are usually {usual_s:g} s apart{_others(gaps)}; fill it in, cut the trace "
            "there, or set channel.options.missing to hold"
        )
    lacking = np.flatnonzero(np.isnan(values))
    if len(lacking) and missing == "refuse":
        raise FedloraError(
            f"trace {path} line {track.lines[lacking[0]]} marks {name} as missing"
            f"{_others(lacking)}; set channel.options.missing to hold, which holds the value "
            "before, or replay other values"
        )
    if name.endswith("bps"):
        still = track.idle | (values == 0)
        if idle == "refuse" and still.any():
            at = int(np.argmax(still))
            raise FedloraError(
                f"trace {path} line {track.lines[at]} has a rate of {values[at]:g} bit/s with "
                f"nothing to send or nothing coming through{_others(np.flatnonzero(still))}, and "
                "the file cannot tell which; set channel.options.idle to hold, which holds the "
                "rate before, or to outage"
            )
        values = np.where(still, 0.0 if idle == "outage" else np.nan, values)
    rows = np.flatnonzero(~np.isnan(values))
    if not len(rows):
        raise FedloraError(f"trace {path} has no value of {name} in any row; replay another file")
    latest = np.searchsorted(rows, np.arange(len(values)), side="right") - 1
    filled: np.ndarray = values[rows[np.maximum(latest, 0)]]
    return filled


def _others(rows: np.ndarray) -> str:
    return f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""


def held_values(link: Track, name: str, path: Path, treatment: Mapping[str, str]) -> Held:
    """Return values over time; see ``known`` for how what is not known is taken."""
    return Held(link.start_s, known(path, link, name, **treatment), link.period_s)


def rate_of(link: Link, name: str, path: Path, treatment: Mapping[str, str]) -> Rate:
    """Return rates over time; see ``known`` for how what is not known is taken."""
    if isinstance(link, Packets):
        return PacketRate(link)
    return HeldRate(link.start_s, known(path, link, name, **treatment), link.period_s)
