"""What the policy sees of a client and of a projection, whatever the model and the number of them.

AirLLM's published state holds the rank of every projection, and so fits one model only; its
linguistic features hardly vary (arXiv 2507.11515, released code). Here a client's state has a fixed
size, ranks are relative to r_max, and everything that may be unknown is 0 beside a flag.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import log2
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedlora.ranks import ClientReport, RankSpace

Array = NDArray[np.float64]

STATE_FEATURES = (
    "coverage",
    "cost_of_r_max",
    "mean_coverage",
    "spread_of_coverage",
    "largest_coverage",
    "held_coverage",
    "never_delivered",
    "age",
    "progress",
    "rounds_left",
    "horizon_known",
    "bit_price",
    "end_weight",
    "statistics_known",
    "token_surprisal",
    "type_token_ratio",
    "pieces_per_word",
)
"""Names of a client's features, in order; a policy sees all of them, or those it was trained on."""

WEIGHT_FEATURES = ("bit_price", "end_weight")
"""Features that say what is wanted; a policy that was not trained on them cannot be told."""

MOST_BIT_PRICE, MOST_END_WEIGHT = 4.0, 16.0
"""The largest weights that policies are trained for."""

PROJECTION_FEATURES = ("width_ratio", "direction", "depth", "size")

_USUAL_ROUNDS = 8


@dataclass
class ChannelMemory:
    """Mean, spread and largest value of the coverages that all clients reported so far."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    def add(self, coverages: Array) -> ChannelMemory:
        """Return the memory with more coverages."""
        if not len(coverages):
            return self
        return ChannelMemory(
            self.count + len(coverages),
            self.total + float(coverages.sum()),
            self.squares + float((coverages**2).sum()),
            max(self.largest, float(coverages.max())),
        )

    @property
    def mean(self) -> float:
        """Mean coverage."""
        return self.total / max(self.count, 1.0)

    @property
    def spread(self) -> float:
        """Standard deviation of the coverage."""
        return float(max(self.squares / max(self.count, 1.0) - self.mean**2, 0.0) ** 0.5)


@dataclass(frozen=True)
class Held:
    """The adapter that a client has.

    Attributes
    ----------
    rank
        Mean rank, weighted by cost; 0 for none.
    round
        Round in which it was delivered.
    ranks
        Rank of each projection; empty for none.
    """

    rank: float = 0.0
    round: int = 0
    ranks: tuple[int, ...] = ()

    def packed(self) -> list[Any]:
        """Return it as a checkpoint holds it."""
        return [self.rank, self.round, list(self.ranks)]

    @classmethod
    def of(cls, packed: list[Any]) -> Self:
        """Take back what ``packed`` gave."""
        rank, round, ranks = packed
        return cls(rank, round, tuple(ranks))


def has_arrived(delivered: bool | None, over_air: bool) -> bool:
    """Tell whether a client has the adapter that a decision was to send it.

    Parameters
    ----------
    delivered
        Of its outcome.
    over_air
        Whether any client had a budget: then adapters come over the air, and in a round in which
        none is due (``channel.deliver_every``) everybody keeps what it has. Else nothing is sent,
        and the clients work with the present adapter at the ranks decided.
    """
    return delivered is True or (delivered is None and not over_air)


@dataclass(frozen=True)
class Weights:
    """What deliveries are to be worth, beside the loss of every round.

    Attributes
    ----------
    bit_price
        Nats for as many bits as the mean channel carries within the deadline.
    end_weight
        For how many rounds more the adapters are used that clients hold after the last one.
    """

    bit_price: float = 0.0
    end_weight: float = 0.0


NO_WEIGHTS = Weights()


def budget_rank(report: ClientReport, space: RankSpace) -> float:
    """Return the largest uniform rank, not rounded, that a client's budget pays for."""
    if report.budget_bits is None:
        return float("inf")
    return report.budget_bits / (space.bits_per_parameter * sum(space.unit_parameters))


def coverage(rank: float, r_max: int) -> float:
    """Return a rank on a logarithmic scale from 0 for rank 0 to 1 for r_max and more."""
    return log2(1 + min(rank, r_max)) / log2(1 + r_max)


def client_state(
    report: ClientReport,
    space: RankSpace,
    memory: ChannelMemory,
    held: Held,
    round: int,
    rounds: int | None,
    weights: Weights = NO_WEIGHTS,
) -> Array:
    """Return the features of a client, in the order of ``STATE_FEATURES``.

    Parameters
    ----------
    report
        What is known of the client.
    space
        The ranks to choose from.
    memory
        Of the channels, this round's included.
    held
        The adapter that the client has.
    round
        Number of the round, from 1.
    rounds
        Planned number of rounds; None if unknown.
    weights
        What is wanted.
    """
    rank = budget_rank(report, space)
    statistics = report.statistics
    told = (
        (statistics.token_surprisal, statistics.type_token_ratio, statistics.pieces_per_word)
        if statistics
        else (None, None, None)
    )
    surprisal, variety, pieces = (value or 0.0 for value in told)
    progress = 1 - 0.5 ** (round / _USUAL_ROUNDS)
    left = 0.0
    if rounds is not None:
        progress = min((round - 1) / rounds, 1.0)
        left = 1 / max(rounds - round + 1, 1)
    return np.array(
        [
            coverage(rank, space.r_max),
            min(space.r_max / max(rank, 1e-9), 16.0) / 16.0,
            memory.mean,
            memory.spread,
            memory.largest,
            coverage(held.rank, space.r_max),
            float(held.rank == 0),
            min(round - held.round, _USUAL_ROUNDS) / _USUAL_ROUNDS,
            progress,
            left,
            float(rounds is not None),
            weights.bit_price / MOST_BIT_PRICE,
            log2(1 + weights.end_weight) / log2(1 + MOST_END_WEIGHT),
            float(any(value is not None for value in told)),
            surprisal / 16,
            variety,
            pieces / 4,
        ]
    )


def projection_features(space: RankSpace) -> Array:
    """Return the features of each projection, shape (projections, 4), each about -1 to 1.

    They tell the kind of a projection by its shape, since names differ from family to family: how
    much wider than the model it is, whether it widens or narrows, where in the depth it is, and
    what a rank of it costs.
    """
    sizes = Counter(size for p in space.projections for size in (p.d_in, p.d_out))
    width = max(sizes, key=lambda size: (sizes[size], size))
    last = max(p.layer for p in space.projections)
    first = min(p.layer for p in space.projections)
    units = np.array(space.unit_parameters, dtype=float)
    rows = [
        (
            log2(max(p.d_in, p.d_out) / width) / 2,
            log2(p.d_out / p.d_in) / 2,
            2 * (p.layer - first) / max(last - first, 1) - 1,
            log2(unit / units.mean()) / 2,
        )
        for p, unit in zip(space.projections, units, strict=True)
    ]
    clipped: NDArray[np.float64] = np.clip(np.array(rows), -1.5, 1.5)
    return clipped
