"""Which shadow prices make the teacher save bits under fading, at no worse end than a fixed rank.

The reward charges air time, not bits, and every round's loss alike; a policy that sends fewer bits
and ends as well needs prices for both. They are found where the table of losses makes it cheap: the
highest reward among the prices that send so many bits less than the best fixed rank, at a loss
after the last round that is below that rank's by a margin. Over a constant channel there is nothing
to wait for, and the teacher seeks the reward alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from simulations.train_policy.profile import Profile
from simulations.train_policy.teacher import Fading, Planner, ShadowPrices

BIT_PRICES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0)
"""Nats for as many bits as the mean channel carries within the deadline."""

FINAL_PRICES = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_PLAYS = 1000
_SNR_STEP_DB = 2.0


@dataclass(frozen=True)
class Thrift:
    """What is to be saved under fading, and how a run is to end.

    Attributes
    ----------
    saving
        Part of the best fixed rank's bits that is not to be sent, from 0 to 1.
    margin
        Nats by which the loss after the last round is to be below that rank's. Who copies the
        teacher does not know the fading as it does, and real training differs from the table.
    """

    saving: float = 0.0
    margin: float = 0.0


@dataclass(frozen=True)
class Result:
    """What a way of delivering comes to, on the table of losses.

    Attributes
    ----------
    reward
        Mean over rounds of minus loss and price, in nats: without the reference, which is common.
    sent
        Mean sum of the ranks that were sent, for each client.
    final_loss
        Mean loss after the last round.
    """

    reward: float
    sent: float
    final_loss: float


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


def play_fixed(planner: Planner, rank: int, fading: Fading, rng: np.random.Generator) -> Result:
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


def thrifty_prices(
    profile: Profile,
    fading: Fading,
    rounds: int,
    r_max: int,
    price: float,
    thrift: Thrift,
    seed: int,
) -> ShadowPrices:
    """Return the prices; none where the channel does not fade or nothing is to be saved.

    Parameters
    ----------
    profile, fading, rounds, r_max, price
        See ``Planner``.
    thrift
        What is wanted.
    seed
        Of the channels that are drawn, the same for all prices and ranks.
    """
    if not fading.rayleigh or thrift.saving == 0:
        return ShadowPrices()

    def planner(shadow: ShadowPrices) -> Planner:
        return Planner(profile, fading, rounds, r_max, price, np.random.default_rng(seed), shadow)

    def channels() -> np.random.Generator:
        return np.random.default_rng([seed, 1])

    plain = planner(ShadowPrices())
    fixed = [play_fixed(plain, rank, fading, channels()) for rank in range(1, r_max + 1)]
    best = max(fixed, key=lambda result: result.reward)
    allowed = (1 - thrift.saving) * best.sent
    carried = float(np.minimum(fading.draw(channels(), _PLAYS), r_max).mean())
    offers = [ShadowPrices(bits / carried, end) for bits, end in product(BIT_PRICES, FINAL_PRICES)]
    tried = {shadow: play(planner(shadow), fading, channels()) for shadow in offers}
    saving = {shadow: result for shadow, result in tried.items() if result.sent <= allowed}
    ending = [
        shadow
        for shadow, result in saving.items()
        if result.final_loss <= best.final_loss - thrift.margin
    ]
    if ending:
        return max(ending, key=lambda shadow: tried[shadow].reward)
    # Nothing has that margin: the best end at these bits that is worth more than the fixed rank.
    worth = [shadow for shadow, result in saving.items() if result.reward > best.reward]
    return min(worth or tried, key=lambda shadow: tried[shadow].final_loss)


@dataclass
class PriceList:
    """The prices of each channel, found when first asked for, in steps of the mean SNR.

    Attributes
    ----------
    profile, rounds, r_max, price, thrift, seed
        See ``thrifty_prices``.
    """

    profile: Profile
    rounds: int
    r_max: int
    price: float
    thrift: Thrift
    seed: int
    _found: dict[Fading, ShadowPrices] = field(default_factory=dict)

    def of(self, fading: Fading) -> ShadowPrices:
        """Return the prices of a channel."""
        near = replace(fading, snr_db=_SNR_STEP_DB * round(fading.snr_db / _SNR_STEP_DB))
        if near not in self._found:
            self._found[near] = thrifty_prices(
                self.profile, near, self.rounds, self.r_max, self.price, self.thrift, self.seed
            )
        return self._found[near]
