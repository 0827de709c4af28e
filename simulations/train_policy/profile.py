"""Held-out loss by round and rank, measured by a few runs without channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlora.config import RanksConfig, Scenario
from simulations.in_process import Record, connect

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """A table of held-out losses.

    Attributes
    ----------
    ranks
        Uniform ranks that were measured, ascending, 0 first.
    losses
        Held-out loss after each round, shape (ranks, rounds), in nats.
    """

    ranks: Array
    losses: Array

    def loss(self, progress: float, rank: ArrayLike) -> Array:
        """Return the loss of adapters, interpolated.

        Parameters
        ----------
        progress
            When they were cut from the server's, as a part of all rounds, from 0 to 1.
        rank
            Mean rank of each.
        """
        rounds = np.arange(1, self.losses.shape[1] + 1) / self.losses.shape[1]
        by_rank = [float(np.interp(progress, rounds, row)) for row in self.losses]
        # The loss is nearly linear in the logarithm of the rank.
        ranks = np.asarray(rank, dtype=float)
        losses: Array = np.interp(np.log2(1 + ranks), np.log2(1 + self.ranks), by_rank)
        return losses


def profile_ranks(r_max: int) -> list[int]:
    """Return the ranks to measure: 0, powers of 2 below r_max, and r_max."""
    powers = [2**k for k in range(r_max.bit_length()) if 2**k < r_max]
    return [0, *powers, r_max]


def measure_profile(
    scenario: Scenario,
    kept: dict[str, list[float]],
    keep: Callable[[dict[str, list[float]]], None],
    advance: Callable[[], None] = lambda: None,
) -> Profile:
    """Run each rank once, unless it was measured already, and return the table.

    Parameters
    ----------
    scenario
        What to run, with the seed to use.
    kept
        Losses by rank that were measured before; takes the others.
    keep
        Called with all of them after each run.
    advance
        Called after each rank.
    """
    ranks = profile_ranks(scenario.lora.r_max)
    for rank in ranks:
        if str(rank) not in kept:
            plain = replace(
                scenario,
                ranks=RanksConfig("uniform", {"r": rank}),
                channel=replace(scenario.channel, deliver_every=0),
                evaluate=replace(scenario.evaluate, every=1, baseline=False),
                # Without adapter nothing changes from round to round.
                train=replace(scenario.train, rounds=1, steps=1) if rank == 0 else scenario.train,
            )
            record = Record()
            connect(plain, record, workers=1).training.run()
            losses = [float(item["loss"] or 0.0) for item in record.rounds]
            kept[str(rank)] = losses * scenario.train.rounds if rank == 0 else losses
            keep(kept)
        advance()
    return Profile(np.array(ranks, dtype=float), np.array([kept[str(rank)] for rank in ranks]))
