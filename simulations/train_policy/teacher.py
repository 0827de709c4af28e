"""The warm start: optimal stopping on a table of losses, solved by dynamic programming.

When to send an adapter, given that each one replaces the last, can be solved exactly where the loss
depends on the round and the rank of the adapter alone. Real training differs (ranks of others, what
is trained, noise), which is what the policy learns afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.channel.rate import Shannon
from fedlora.ranks import ClientReport, DataStatistics, RankSpace
from simulations.train_policy.profile import Profile
from strategies.airllm.features import ChannelMemory, Held, budget_rank, client_state, coverage

Array = NDArray[np.float64]

FRACTIONS = np.array([0.0, 1.0])
NOTHING, EVERYTHING = -0.9, 0.9
_WORTH = 0.05
_DRAWS = 64
_LOSS_POINTS = 48


@dataclass(frozen=True)
class Demonstrations:
    """What the teacher did.

    Attributes
    ----------
    states
        Features, shape (decisions, features).
    latents
        Latent of each decision, in [-1, 1].
    values
        Reward to go, relative to the reference.
    weights
        From 0 to 1, how much the decision matters: a tie need not be copied.
    """

    states: Array
    latents: Array
    values: Array
    weights: Array


@dataclass(frozen=True)
class Fading:
    """Distribution of the uniform rank that the budget of a round pays for.

    Attributes
    ----------
    snr_db
        Mean SNR, in dB.
    ranks_at_1_bps_hz
        Uniform rank for 1 bit/s/Hz.
    rayleigh
        Whether the power fades exponentially, or not at all.
    """

    snr_db: float
    ranks_at_1_bps_hz: float
    rayleigh: bool

    def draw(self, rng: np.random.Generator, size: int) -> Array:
        """Return budgets, in uniform ranks."""
        power = rng.exponential(size=size) if self.rayleigh else np.ones(size)
        snrs_db = self.snr_db + 10 * np.log10(power)
        return self.ranks_at_1_bps_hz * np.array([Shannon(0.0).rate_bps(s, 1.0) for s in snrs_db])


class Planner:
    """The optimal deliveries for one fading distribution and number of rounds.

    Parameters
    ----------
    profile
        Losses by round and rank.
    fading
        Distribution of the budgets, independent from round to round.
    rounds
        Number of rounds.
    r_max
        Largest rank.
    price
        Nats that a whole deadline of air time costs.
    rng
        Draws the budgets over which expectations are taken.
    """

    def __init__(
        self,
        profile: Profile,
        fading: Fading,
        rounds: int,
        r_max: int,
        price: float,
        rng: np.random.Generator,
    ) -> None:
        self.profile, self.rounds, self.r_max, self.price = profile, rounds, r_max, price
        draws = fading.draw(rng, _DRAWS if fading.rayleigh else 1)
        low, high = float(profile.losses.min()), float(profile.losses.max())
        self.grid = np.linspace(low, high, _LOSS_POINTS)
        self.values = np.zeros((rounds + 2, _LOSS_POINTS))
        for round_ in range(rounds, 0, -1):
            total = np.zeros(_LOSS_POINTS)
            for budget in draws:
                total += self._options(round_, float(budget), self.grid).max(axis=0)
            self.values[round_] = total / len(draws)

    def choose(self, round_: int, budget: float, held_loss: float) -> float:
        """Return the best part of the budget to use, 0 for none."""
        options = self._options(round_, budget, np.array([held_loss]))
        return float(FRACTIONS[int(options[:, 0].argmax())])

    def regret(self, round_: int, budget: float, held_loss: float) -> float:
        """Return what the other choice would lose, in nats."""
        options = self._options(round_, budget, np.array([held_loss]))
        return float(np.ptp(options))

    def value(self, round_: int, held_loss: float) -> float:
        """Return the expected reward to go before a round's budget is known."""
        return float(np.interp(held_loss, self.grid, self.values[round_]))

    def new_loss(self, round_: int, budget: float, fraction: float, held_loss: float) -> float:
        """Return the loss of the adapter that a client has after a decision."""
        if fraction == 0:
            return held_loss
        return self.profile.loss(round_ / self.rounds, fraction * min(budget, self.r_max))

    def cost(self, budget: float, fraction: float) -> float:
        """Return the share of the deadline that a delivery takes."""
        return fraction * min(budget, self.r_max) / budget

    def _options(self, round_: int, budget: float, held: Array) -> Array:
        """Return the reward to go of each fraction, shape (fractions, held losses)."""
        rows = []
        for fraction in FRACTIONS:
            after = (
                held
                if fraction == 0
                else np.full_like(held, self.new_loss(round_, budget, float(fraction), 0.0))
            )
            later = np.interp(after, self.grid, self.values[round_ + 1])
            rows.append(-after - self.price * self.cost(budget, float(fraction)) + later)
        return np.array(rows)


def demonstrate(
    profile: Profile,
    space: RankSpace,
    fading: Fading,
    rounds: int,
    price: float,
    rng: np.random.Generator,
    *,
    clients: int,
    train_latent: float,
) -> Demonstrations:
    """Play the optimal deliveries for some clients and note states and choices.

    Parameters
    ----------
    profile, fading, rounds, price, rng
        See ``Planner``.
    space
        Ranks to choose from.
    clients
        Number of clients.
    train_latent
        The latent's second entry, which the table of losses says nothing of.
    """
    planner = Planner(profile, fading, rounds, space.r_max, price, rng)
    best = profile.losses[-1]
    memory, held = ChannelMemory(), [Held()] * clients
    losses = [float(profile.losses[0, 0])] * clients
    known_rounds = rounds if rng.random() < 0.7 else None
    unit_bits = space.bits(space.uniform(1))
    states, latents, values, weights = [], [], [], []
    for round_ in range(1, rounds + 1):
        budgets = fading.draw(rng, clients)
        reports = [_report(float(b) * unit_bits, rng) for b in budgets]
        covered = [coverage(budget_rank(r, space), space.r_max) for r in reports]
        memory = memory.add(np.array(covered))
        to_come = sum(
            float(np.interp(t / rounds, np.linspace(0, 1, len(best) + 1)[1:], best))
            for t in range(round_, rounds + 1)
        )
        for client, report in enumerate(reports):
            budget = float(budgets[client])
            states.append(client_state(report, space, memory, held[client], round_, known_rounds))
            fraction = planner.choose(round_, budget, losses[client])
            # Now and then the teacher errs, so that the policy sees how to go on from there.
            done = float(rng.choice(FRACTIONS)) if rng.random() < 0.15 else fraction
            amount = EVERYTHING if fraction else NOTHING
            weights.append(min(planner.regret(round_, budget, losses[client]) / _WORTH, 1.0))
            latents.append([amount, train_latent, 0.0, 0.0])
            values.append(planner.value(round_, losses[client]) + to_come)
            losses[client] = planner.new_loss(round_, budget, done, losses[client])
            if done:
                held[client] = Held(done * min(budget, space.r_max), round_)
    return Demonstrations(np.array(states), np.array(latents), np.array(values), np.array(weights))


def _report(budget_bits: float, rng: np.random.Generator) -> ClientReport:
    """Return a report with statistics that say nothing, or none: the teacher does not need them."""
    statistics = None
    if rng.random() < 0.5:
        statistics = DataStatistics(
            float(rng.uniform(6, 14)), float(rng.uniform(0.05, 0.9)), float(rng.uniform(1, 2.5))
        )
    return ClientReport(budget_bits=budget_bits, statistics=statistics)
