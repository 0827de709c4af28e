"""Which shadow prices make the teacher save bits under fading, at no worse end than a fixed rank.

The reward charges air time, not bits, and every round's loss alike; a policy that sends fewer bits
and ends as well needs prices for both. They are found where the table of losses makes it cheap: the
highest reward among the prices that send so many bits less than the best fixed rank, at a loss
after the last round that is below that rank's by a margin. Over a constant channel there is nothing
to wait for, and the teacher seeks the reward alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from simulations.train_policy.profile import Profile
from simulations.train_policy.teacher import NO_SHADOW, Fading, Planner, Result, ShadowPrices

BIT_PRICES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0)
"""Nats for as many bits as the mean channel carries within the deadline."""

FINAL_PRICES = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_PLAYS = 1000
_SNR_STEP_DB = 2.5
_RANK_STEP = 0.25
_MOST = 0.6


@dataclass(frozen=True)
class Target:
    """What is to be saved over a channel, and how a run is to end there.

    Attributes
    ----------
    saving
        Part of the best fixed rank's bits that is not to be sent, from 0 to 1.
    margin
        Nats by which the loss after the last round is to be below that rank's. Who copies the
        teacher does not know the fading as it does, and real training differs from the table.
    """

    saving: float
    margin: float


@dataclass(frozen=True)
class SavingsTarget:
    """What is to be saved under fading.

    Attributes
    ----------
    snrs_db, savings
        Savings at some mean SNRs; between these they are interpolated.
    margin
        See ``Target``.
    """

    snrs_db: tuple[float, ...] = (0.0,)
    savings: tuple[float, ...] = (0.0,)
    margin: float = 0.0

    def at(self, snr_db: float) -> Target:
        """Return what is wanted at a mean SNR."""
        points = sorted(zip(self.snrs_db, self.savings, strict=True))
        return Target(float(np.interp(snr_db, *zip(*points, strict=True))), self.margin)


def play(planner: Planner, fading: Fading, rng: np.random.Generator) -> Result:
    """Deliver as a planner chooses."""
    loss = np.full(_PLAYS, planner.profile.losses[0, 0])
    reward, sent = 0.0, 0.0
    for round_ in range(1, planner.rounds + 1):
        budget = fading.draw(rng, _PLAYS)
        fraction = planner.choose(round_, budget, loss)
        loss = planner.new_loss(round_, budget, fraction, loss)
        reward -= float((loss + planner.price * planner.cost(budget, fraction)).mean())
        sent += float((fraction * np.minimum(budget, planner.r_max)).mean())
    return Result(reward / planner.rounds, sent, float(loss.mean()))


def play_fixed(planner: Planner, rank: float, fading: Fading, rng: np.random.Generator) -> Result:
    """Deliver one rank every round; a late one is sent up to the deadline, for nothing."""
    loss = np.full(_PLAYS, planner.profile.losses[0, 0])
    reward, sent = 0.0, 0.0
    for round_ in range(1, planner.rounds + 1):
        budget = fading.draw(rng, _PLAYS)
        fresh = planner.profile.loss(round_ / planner.rounds, float(rank))
        loss = np.where(rank <= budget, fresh, loss)
        cost = np.minimum(rank / budget, 1.0)
        reward -= float((loss + planner.price * cost).mean())
        sent += float(np.minimum(rank, budget).mean())
    return Result(reward / planner.rounds, sent, float(loss.mean()))


class PriceList:
    """The prices of each channel, found when first asked for, in steps of the mean SNR.

    Parameters
    ----------
    profile, rounds, r_max, price
        See ``Planner``.
    thrift
        What is wanted under fading.
    seed
        Of the channels that are drawn, the same for all prices and ranks.
    """

    def __init__(
        self,
        profile: Profile,
        rounds: int,
        r_max: int,
        price: float,
        thrift: SavingsTarget,
        seed: int,
    ) -> None:
        self.profile, self.rounds, self.r_max, self.price = profile, rounds, r_max, price
        self.thrift, self.seed = thrift, seed
        self._asked: dict[Fading, Target] = {}
        self._found: dict[Fading, ShadowPrices] = {}

    def of(self, fading: Fading) -> ShadowPrices:
        """Return the prices of a channel; none over a constant one, or if nothing is to be saved.

        The channels of a step of the mean SNR have the same prices.
        """
        if not fading.rayleigh or not any(self.thrift.savings):
            return NO_SHADOW
        near = replace(fading, snr_db=_SNR_STEP_DB * round(fading.snr_db / _SNR_STEP_DB))
        if near not in self._found:
            self._asked[near] = self.thrift.at(near.snr_db)
            self._found[near] = self._prices(near)
        return self._found[near]

    def correct(self, student: Callable[[Fading], Result]) -> None:
        """Ask the teacher for as much more, at each SNR, as its student falls short of.

        Who copies it does not know the channel beforehand, and so does not save as it does.

        Parameters
        ----------
        student
            Returns what the student comes to over a channel.
        """
        for fading, asked in self._asked.items():
            result, best = student(fading), self.best_fixed(fading)
            wanted = self.thrift.at(fading.snr_db)
            saved = 1 - result.sent / best.sent
            margin = best.final_loss - result.final_loss
            self._asked[fading] = Target(
                min(max(asked.saving + wanted.saving - saved, 0.0), _MOST),
                max(asked.margin + wanted.margin - margin, 0.0),
            )
            self._found[fading] = self._prices(fading)

    def state(self) -> list[dict[str, float]]:
        """Return what is asked at each SNR, as JSON can keep it."""
        return [
            {"snr_db": fading.snr_db, "ranks_at_1_bps_hz": fading.ranks_at_1_bps_hz, **vars(target)}
            for fading, target in self._asked.items()
        ]

    def load_state(self, state: list[dict[str, float]]) -> None:
        """Ask again what was asked."""
        for row in state:
            fading = Fading(row["snr_db"], row["ranks_at_1_bps_hz"], rayleigh=True)
            self._asked[fading] = Target(row["saving"], row["margin"])
            self._found[fading] = self._prices(fading)

    def best_fixed(self, fading: Fading) -> Result:
        """Return what the fixed rank with the highest reward comes to.

        Ranks between whole ones count, so that it changes little from one SNR to the next.
        """
        fixed = [
            play_fixed(self._planner(fading), rank, fading, self._channels())
            for rank in np.arange(1, self.r_max + _RANK_STEP, _RANK_STEP)
        ]
        return max(fixed, key=lambda result: result.reward)

    def _prices(self, fading: Fading) -> ShadowPrices:
        best, target = self.best_fixed(fading), self._asked[fading]
        carried = float(np.minimum(fading.draw(self._channels(), _PLAYS), self.r_max).mean())
        offers = [
            ShadowPrices(bits / carried, end) for bits, end in product(BIT_PRICES, FINAL_PRICES)
        ]
        tried = {
            shadow: play(self._planner(fading, shadow), fading, self._channels())
            for shadow in offers
        }
        allowed = (1 - target.saving) * best.sent
        saving = {shadow: result for shadow, result in tried.items() if result.sent <= allowed}
        ending = [
            shadow
            for shadow, result in saving.items()
            if result.final_loss <= best.final_loss - target.margin
        ]
        if ending:
            return max(ending, key=lambda shadow: tried[shadow].reward)
        # Nothing has that margin: the best end at these bits that is worth more than the fixed
        # rank.
        worth = [shadow for shadow, result in saving.items() if result.reward > best.reward]
        return min(worth or tried, key=lambda shadow: tried[shadow].final_loss)

    def _planner(self, fading: Fading, shadow: ShadowPrices = NO_SHADOW) -> Planner:
        rng = np.random.default_rng(self.seed)
        return Planner(self.profile, fading, self.rounds, self.r_max, self.price, rng, shadow)

    def _channels(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 1])
