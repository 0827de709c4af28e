"""How ``airllm`` stands against a rival at each SNR, by tests that were fixed before the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulations.studies.compare.frontier import SIGNIFICANCE, tost
from simulations.studies.compare.statistics import (
    Interval,
    Row,
    by_strategy,
    holm,
    interval,
    mean_of,
    p_value,
    paired,
    snrs_db,
)
from simulations.studies.results.rows import Protocol


@dataclass(frozen=True)
class Verdict:
    """Ours beside a rival at one SNR, paired by seed; differences are ours minus the rival's.

    Attributes
    ----------
    snr_db, rival
        Where, and with what ours was compared.
    bits
        By which part our bits differ from the rival's.
    rewards, losses
        Differences of the reward and of the final held-out loss, in nats.
    p_reward, p_loss
        That their means are 0: two-sided paired t-tests, after Holm.
    p_equal
        That the losses differ by more than the margin: two one-sided tests, after Holm.
    """

    snr_db: float
    rival: str
    bits: Interval
    rewards: Sequence[float]
    losses: Sequence[float]
    p_reward: float
    p_loss: float
    p_equal: float

    @property
    def bits_are(self) -> str:
        """``fewer`` or ``more`` where the 95% interval says so, else ``not shown``."""
        if self.bits.high < 0:
            return "fewer"
        return "more" if self.bits.low > 0 else "not shown"

    @property
    def reward_is(self) -> str:
        """``higher``, ``lower`` or ``not shown``."""
        return _side(self.rewards, self.p_reward)

    @property
    def loss_is(self) -> str:
        """``equal`` within the margin, ``higher``, ``lower`` or ``not shown``."""
        return "equal" if self.p_equal < SIGNIFICANCE else _side(self.losses, self.p_loss)


def verdicts(rows: Sequence[Row], protocol: Protocol) -> list[Verdict]:
    """Compare ours with each rival at each SNR; each test is one family for Holm's correction.

    Parameters
    ----------
    rows
        Of SNRs at which every strategy has the same seeds.
    protocol
        Of the channel.
    """
    found = []
    for snr_db in snrs_db(rows):
        here = by_strategy([row for row in rows if row["snr_db"] == snr_db])
        for name in protocol.rivals:
            ours, rival = here[protocol.ours], here[name]
            bits = change(ours, rival, "adapter_bits")
            gains, losses = (paired(ours, rival, column) for column in ("reward", "loss"))
            found.append((snr_db, name, bits, gains, losses))
    p_reward = holm([p_value(gains) for *_, gains, _ in found])
    p_loss = holm([p_value(losses) for *_, losses in found])
    p_equal = holm([tost(losses, protocol.margin) for *_, losses in found])
    return [Verdict(*parts, *p) for parts, *p in zip(found, p_reward, p_loss, p_equal, strict=True)]


def change(first: Sequence[Row], second: Sequence[Row], column: str) -> Interval:
    """Return by what fraction a mean differs from another, paired by seed, and its 95% interval.

    The interval is that of a ratio of means by its first-order expansion (Cochran 1977, 2.11).
    """
    of_second = {row["seed"]: row[column] for row in second}
    base = mean_of(second, column)
    ratio = mean_of(first, column) / base
    rest = interval([(row[column] - ratio * of_second[row["seed"]]) / base for row in first])
    return Interval(ratio - 1, ratio - 1 + rest.low - rest.mean, ratio - 1 + rest.high - rest.mean)


def _side(differences: Sequence[float], p: float) -> str:
    if p >= SIGNIFICANCE:
        return "not shown"
    return "higher" if np.mean(differences) > 0 else "lower"
