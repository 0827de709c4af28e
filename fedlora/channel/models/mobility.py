"""Where clients are: at rest, on a straight line, or on their way to random points."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from fedlora.channel.streams import Stream, stream


class Mobility(Protocol):
    """Positions as a function of time, in a square cell centred on the server's antenna."""

    def position_m(self, client: int, time_s: float) -> np.ndarray:
        """Return the (x, y) position of a client, in metres."""


class Linear:
    """A random place and heading, constant speed, reflected at the cell's border.

    Parameters
    ----------
    seed
        The run's seed.
    half_side_m
        Half the side of the cell, in metres.
    speed_mps
        Speed in metres per second; 0 for clients at rest.
    """

    def __init__(self, seed: int, half_side_m: float, speed_mps: float) -> None:
        self._seed = seed
        self._half_side_m = half_side_m
        self._speed_mps = speed_mps
        self._drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def position_m(self, client: int, time_s: float) -> np.ndarray:
        """Return the (x, y) position of a client, in metres."""
        if client not in self._drawn:
            rng = stream(self._seed, Stream.PLACE, client)
            start = rng.uniform(-self._half_side_m, self._half_side_m, 2)
            heading = rng.uniform(0, 2 * math.pi)
            self._drawn[client] = start, np.array([math.cos(heading), math.sin(heading)])
        start, direction = self._drawn[client]
        return self._fold(start + self._speed_mps * time_s * direction)

    def _fold(self, position: np.ndarray) -> np.ndarray:
        """Return where a point beyond the border is reflected to: a triangle wave."""
        side = 2 * self._half_side_m
        phase = np.mod(position + self._half_side_m, 2 * side)
        return np.asarray(np.minimum(phase, 2 * side - phase) - self._half_side_m)


class RandomWaypoint:
    """Straight legs of constant speed between points drawn uniformly from the cell.

    A client's points come from one stream in order, and legs are kept, so that a position does not
    depend on which times were asked for before.

    Parameters
    ----------
    seed
        The run's seed.
    half_side_m
        Half the side of the cell, in metres.
    speed_mps
        Speed in metres per second, above 0.
    """

    def __init__(self, seed: int, half_side_m: float, speed_mps: float) -> None:
        self._seed = seed
        self._half_side_m = half_side_m
        self._speed_mps = speed_mps
        self._trips: dict[int, tuple[np.random.Generator, list[np.ndarray], list[float]]] = {}

    def position_m(self, client: int, time_s: float) -> np.ndarray:
        """Return the (x, y) position of a client, in metres."""
        if client not in self._trips:
            rng = stream(self._seed, Stream.PLACE, client)
            self._trips[client] = rng, [self._point(rng)], [0.0]
        rng, points, arrivals_s = self._trips[client]
        while arrivals_s[-1] <= time_s:
            points.append(self._point(rng))
            leg_s = float(np.linalg.norm(points[-1] - points[-2])) / self._speed_mps
            arrivals_s.append(arrivals_s[-1] + leg_s)
        leg = int(np.searchsorted(arrivals_s, time_s, side="right"))
        done = (time_s - arrivals_s[leg - 1]) / (arrivals_s[leg] - arrivals_s[leg - 1])
        return np.asarray(points[leg - 1] + done * (points[leg] - points[leg - 1]))

    def _point(self, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-self._half_side_m, self._half_side_m, 2)
