"""Spending a fixed budget where the channel lets gradients count.

A sample that is uploaded T times has a total R = T rho(sigma), fixed before the run. With
``privacy.spread = "channel"`` upload t takes of what is left

    rho_t = R_left w_t / (w_t + (T_left - 1) w_mean),   w = (rank / r_max) (rate / mean rate),

so that a round with twice the weight spends about twice as much and the last upload spends the
rest. With equal weights it is the even split. The weight depends on the client's own channel and on
the rank that it was told, never on its data or loss. A server that has seen earlier releases may
choose the rank: the totals are fixed at every order, and ``rho_t`` never passes what is left, so
this is a Rényi filter (Feldman and Zrnic 2021, Theorem 4.3; see
``fedlora.privacy.accounting.rdp``).

===========  =====================================
``uploads``  T
``total``    R
``spent``    R - R_left
``now``      w_t / w_mean, within WEIGHT_MIN, _MAX
===========  =====================================
"""

from __future__ import annotations

import math

from fedlora.errors import FedloraError
from fedlora.privacy.accounting.rdp import rho, upload_cost

WEIGHT_MIN, WEIGHT_MAX = 0.25, 4.0
"""A round never counts for less or more than this times the mean."""


class ChannelWeight:
    """What a round counts for, from a client's own rate and the rank that it was told.

    Parameters
    ----------
    r_max
        Largest rank.
    """

    def __init__(self, r_max: int) -> None:
        self._r_max = r_max
        self._rates: list[float] = []
        self._weights: list[float] = []

    def begin_round(self, up_rate_bps: float | None) -> None:
        """Note the client's own uplink rate in a round, in bit/s; None where it is not known."""
        known = up_rate_bps is not None and math.isfinite(up_rate_bps) and up_rate_bps > 0
        previous = self._rates[-1] if self._rates else 1.0
        self._rates.append(up_rate_bps if known and up_rate_bps is not None else previous)
        self._weights.append(self._weight(1.0))

    def told_rank(self, rank: float | None) -> None:
        """Note the mean rank that the server says the round trains; anything else counts as r_max.

        Parameters
        ----------
        rank
            From 0 to r_max.
        """
        share = 1.0
        if rank is not None and 0 <= rank <= self._r_max:
            share = rank / self._r_max
        if not self._weights:
            self.begin_round(None)
        self._weights[-1] = self._weight(share)

    @property
    def now(self) -> float:
        """Weight of the present round over the mean of the rounds so far."""
        if not self._weights:
            return 1.0
        mean = sum(self._weights) / len(self._weights)
        return min(WEIGHT_MAX, max(WEIGHT_MIN, self._weights[-1] / mean))

    def _weight(self, share: float) -> float:
        mean = sum(self._rates) / len(self._rates)
        return max(WEIGHT_MIN, share) * min(WEIGHT_MAX, self._rates[-1] / mean)


class BudgetSpread:
    """The noise of each upload of a client's samples, at a fixed total for each.

    Parameters
    ----------
    sigma
        Noise of every upload in an even split, over the clipping norm.
    uploads
        Uploads T of a sample that the total pays for.
    sigma_min
        The owner's floor; what it leaves over goes to later uploads.
    """

    def __init__(self, sigma: float, uploads: int, sigma_min: float = 0.0) -> None:
        if uploads < 1:
            raise FedloraError(f"{uploads} uploads of a sample are planned; plan 1 or more")
        self.total = uploads * upload_cost(sigma)
        self._uploads = uploads
        self._floor = rho(sigma_min) if sigma_min > 0 else math.inf

    def sigma(self, spent: float, done: int, weight: float) -> float | None:
        """Return the noise of the next upload of a sample.

        Parameters
        ----------
        spent
            What its earlier uploads have cost, as the sum of ``rdp.upload_cost``.
        done
            Number of its earlier uploads.
        weight
            What the present round counts for, over the mean (``ChannelWeight.now``).

        Returns
        -------
        float or None
            Standard deviation over the clipping norm; None where the total is spent.
        """
        left, uploads = self.total - spent, self._uploads - done
        if uploads < 1 or left <= 0:
            return None
        share = min(left * weight / (weight + uploads - 1), self._floor)
        # divided by more than the cost is rounded up by, so that the last upload still fits
        return math.sqrt(rho(1.0) / (share * (1 - 1e-12)))
