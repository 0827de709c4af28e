"""Online scheduling and bandwidth allocation under a limit on the mean delay.

================  ===============================================
``queue_s``       Q(t), the virtual queue of drift plus penalty
``trade_off``     V
``mean_delay_s``  tau_mean
================  ===============================================
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedlora.channel.schedule.bandwidth import DelayCurves, fastest_round
from fedlora.channel.schedule.base import ClientLoad, Scheduler
from fedlora.channel.state import ChannelState
from fedlora.checks import number, whole


class LyapunovScheduler(Scheduler):
    """As many clients as possible while rounds keep to a delay on average.

    After the online algorithm of Wang, Zhou, Shi and Letaief (arXiv 2407.02924), reconstructed from
    its abstract: the bound on the convergence gap falls with the number of participants of each
    round, weighted by the round; a virtual queue ``Q(t+1) = max(Q(t) + tau(t) - tau_mean, 0)``
    stands for the limit on the mean delay; each round minimises
    ``Q(t) tau(t) - trade_off w(t) |S(t)|`` over the participants S and the division of bandwidth.
    The minimum is exact: the fastest round is found for each number of participants, but for those
    that cannot win, as delay grows with the number.

    Parameters
    ----------
    rounds, seed, total_bandwidth_hz
        See ``Scheduler``; without a total the clients' own bandwidths are pooled.
    mean_delay_s
        Limit ``tau_mean`` on the mean delay of a round, in seconds.
    trade_off
        Weight V of one more participant, in square seconds: the larger, the more take part and the
        longer the mean delay takes to settle.
    contraction
        Factor by which the convergence bound forgives a round's loss with every later round; the
        weight ``w(t)`` is ``contraction ** (rounds - 1 - t)``. 1 weighs all rounds alike.
    min_clients
        Smallest number of participants, 1 or more.
    max_delay_s
        Longest round that more than ``min_clients`` participants may make, in seconds; 0 means ten
        times the mean. The queue's guarantee needs bounded delays, and while the queue is empty
        nothing else would keep a client in a deep fade from holding up the round.
    """

    def __init__(
        self,
        *,
        rounds: int,
        seed: int,
        total_bandwidth_hz: float = 0.0,
        mean_delay_s: float,
        trade_off: float = 1.0,
        contraction: float = 1.0,
        min_clients: int = 1,
        max_delay_s: float = 0.0,
    ) -> None:
        super().__init__(rounds=rounds, seed=seed, total_bandwidth_hz=total_bandwidth_hz)
        option = "channel.schedule.options."
        self._mean_delay_s = number(option + "mean_delay_s", mean_delay_s, 1e-9, 1e9)
        self._trade_off = number(option + "trade_off", trade_off, 0.0, 1e18)
        self._contraction = number(option + "contraction", contraction, 1e-9, 1.0)
        self._min_clients = whole(option + "min_clients", min_clients, 1, 100_000)
        max_delay_s = number(option + "max_delay_s", max_delay_s, 0.0, 1e9)
        self._max_delay_s = max_delay_s or 10 * self._mean_delay_s
        self.queue_s = 0.0

    def select(
        self, round: int, reports: Mapping[int, ChannelState], loads: Mapping[int, ClientLoad]
    ) -> dict[int, float]:
        """Return the clients of a round, each with its bandwidth in Hz."""
        clients = sorted(reports)
        if not clients:
            return {}
        total_hz = self.total_bandwidth_hz or sum(reports[k].bandwidth_hz for k in clients)
        curves = DelayCurves.of(clients, reports, loads)
        worth = self._trade_off * self._contraction ** max(self.rounds - 1 - round, 0)
        fewest, most = max(1, min(self._min_clients, len(clients))), len(clients)
        best, taken = math.inf, fewest
        rounds: dict[int, tuple[float, np.ndarray, np.ndarray]] = {}

        def look(count: int) -> None:
            """Find the fastest round of so many, and keep it in mind if it is the best so far."""
            nonlocal best, taken
            rounds[count] = fastest_round(curves, count, total_hz)
            delay_s = rounds[count][0]
            if delay_s > self._max_delay_s and count > self._min_clients:
                return
            objective = self.queue_s * delay_s - worth * count
            if (objective, -count) < (best, -taken):
                best, taken = objective, count

        def between(low: int, high: int) -> tuple[float, int, int]:
            """Bound the numbers in between, as delay grows with them, for a heap."""
            return self.queue_s * rounds[low][0] - worth * (high - 1), low, high

        for count in {fewest, most}:
            look(count)
        heap = [between(fewest, most)]
        while heap:
            least, low, high = heapq.heappop(heap)
            if high - low < 2 or (least, 1 - high) >= (best, -taken):
                continue
            if rounds[low][0] > self._max_delay_s and low >= self._min_clients:
                continue
            look(middle := (low + high) // 2)
            for part in (between(low, middle), between(middle, high)):
                heapq.heappush(heap, part)
        _, chosen, bandwidth_hz = rounds[taken]
        division = zip(chosen, bandwidth_hz, strict=True)
        return dict(sorted((clients[place], float(hz)) for place, hz in division))

    def observe(self, round: int, delay_s: float) -> None:
        """Learn how long a round took, in seconds."""
        del round
        self.queue_s = max(self.queue_s + delay_s - self._mean_delay_s, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the virtual queue."""
        return {"queue_s": self.queue_s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the virtual queue."""
        self.queue_s = number("queue_s of the scheduler's state", state["queue_s"], low=0.0)
