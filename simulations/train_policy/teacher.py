"""The warm start: optimal stopping on a table of losses, solved by dynamic programming.

When to send an adapter, given that each one replaces the last, can be solved exactly where the loss
depends on the round and the rank of the adapter alone. Real training differs (ranks of others, what
is trained, noise), which is what the policy learns afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlora.ranks import ClientReport, DataStatistics, RankSpace
from simulations.train_policy.profile import Profile
from strategies.airllm import (
    NO_WEIGHTS,
    ChannelMemory,
    Held,
    Weights,
    budget_rank,
    client_state,
    coverage,
)

Array = NDArray[np.float64]

FRACTIONS = np.array([0.0, 0.5, 1.0])
"""Parts of the budget that the teacher may spend."""

NO, YES = -0.9, 0.9
_WORTH = 0.5
"""Nats from which on a decision is copied with full weight: below, it weighs what it is worth."""

_DRAWS, _MANY = 96, 2000
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
        From 0 to 1, how much each entry of the latent matters, shape (decisions, 5): a tie need not
        be copied.
    """

    states: Array
    latents: Array
    values: Array
    weights: Array


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
        return self.ranks_at_1_bps_hz * np.log2(1 + 10 ** (self.snr_db / 10) * power)

    def carried(self, r_max: int) -> float:
        """Return the mean uniform rank, at most r_max, that arrives within the deadline."""
        return float(np.minimum(self.draw(np.random.default_rng(0), _MANY), r_max).mean())


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
    weights
        What bits and the adapters after the last round are worth beside that.
    """

    def __init__(
        self,
        profile: Profile,
        fading: Fading,
        rounds: int,
        r_max: int,
        price: float,
        rng: np.random.Generator,
        weights: Weights = NO_WEIGHTS,
    ) -> None:
        self.profile, self.rounds, self.r_max, self.price = profile, rounds, r_max, price
        self.end_weight = weights.end_weight
        self.price_of_rank = weights.bit_price / fading.carried(r_max)
        draws = fading.draw(rng, _DRAWS if fading.rayleigh else 1)
        low, high = float(profile.losses.min()), float(profile.losses.max())
        self.grid = np.linspace(low, high, _LOSS_POINTS)
        self.values = np.zeros((rounds + 2, _LOSS_POINTS))
        for round_ in range(rounds, 0, -1):
            options = self.options(round_, draws[:, None], self.grid[None, :])
            self.values[round_] = options.max(axis=0).mean(axis=0)

    def choose(self, round_: int, budget: ArrayLike, held_loss: ArrayLike) -> Array:
        """Return the best part of each budget to use, 0 for none."""
        chosen: Array = FRACTIONS[self.options(round_, budget, held_loss).argmax(axis=0)]
        return chosen

    def value(self, round_: int, held_loss: ArrayLike) -> Array:
        """Return the expected reward to go before a round's budget is known."""
        value: Array = np.interp(np.asarray(held_loss), self.grid, self.values[round_])
        return value

    def new_loss(
        self, round_: int, budget: ArrayLike, fraction: ArrayLike, held_loss: ArrayLike
    ) -> Array:
        """Return the loss of the adapter that a client has after a decision."""
        rank = np.asarray(fraction) * np.minimum(budget, self.r_max)
        fresh = self.profile.loss(round_ / self.rounds, rank)
        return np.where(np.asarray(fraction) > 0, fresh, held_loss)

    def cost(self, budget: ArrayLike, fraction: ArrayLike) -> Array:
        """Return the share of the deadline that a delivery takes."""
        share: Array = np.asarray(fraction) * np.minimum(budget, self.r_max) / np.asarray(budget)
        return share

    def options(self, round_: int, budget: ArrayLike, held_loss: ArrayLike) -> Array:
        """Return the reward to go of each fraction, shape (fractions, ...)."""
        weight = 1 + (self.end_weight if round_ == self.rounds else 0.0)
        rows = []
        for fraction in FRACTIONS:
            after = self.new_loss(round_, budget, fraction, held_loss)
            sent = fraction * np.minimum(budget, self.r_max)
            later = np.interp(after, self.grid, self.values[round_ + 1])
            paid = self.price * self.cost(budget, fraction) + self.price_of_rank * sent
            rows.append(later - weight * after - paid)
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
    weights: Weights = NO_WEIGHTS,
    student: Callable[[Array], Array] | None = None,
    tell_rounds: bool | None = None,
) -> tuple[Demonstrations, Result]:
    """Play deliveries for some clients, and note the states and what the teacher would do there.

    Also returns what the deliveries came to.

    Parameters
    ----------
    profile, fading, rounds, price, rng, weights
        See ``Planner``.
    space
        Ranks to choose from.
    clients
        Number of clients.
    train_latent
        The latent's third entry, which the table of losses says nothing of.
    student
        Returns, for states, the parts of the budgets that are spent: who learns decides, and the
        teacher says what would have been right. The teacher decides if it is left out.
    tell_rounds
        Whether the states say how many rounds there are; drawn at random if left out.
    """
    planner = Planner(profile, fading, rounds, space.r_max, price, rng, weights)
    best = profile.losses[-1]
    memory, held = ChannelMemory(), [Held()] * clients
    losses = np.full(clients, profile.losses[0, 0])
    if tell_rounds is None:
        tell_rounds = rng.random() < 0.7
    known_rounds = rounds if tell_rounds else None
    unit_bits = space.bits(space.uniform(1))
    states, latents, values, mattering = [], [], [], []
    reward, total = 0.0, 0.0
    for round_ in range(1, rounds + 1):
        budgets = fading.draw(rng, clients)
        reports = [_report(float(b) * unit_bits, rng) for b in budgets]
        covered = [coverage(budget_rank(r, space), space.r_max) for r in reports]
        memory = memory.add(np.array(covered))
        to_come = sum(
            float(np.interp(t / rounds, np.linspace(0, 1, len(best) + 1)[1:], best))
            for t in range(round_, rounds + 1)
        ) + weights.end_weight * float(best[-1])
        options = planner.options(round_, budgets, losses)
        chosen = FRACTIONS[options.argmax(axis=0)]
        seen = [
            client_state(report, space, memory, held[client], round_, known_rounds, weights)
            for client, report in enumerate(reports)
        ]
        states += seen
        if student is None:
            # Now and then the teacher errs, so that the policy sees how to go on from there.
            erring = rng.random(clients) < 0.15
            done = np.where(erring, rng.choice(FRACTIONS, clients), chosen)
        else:
            done = student(np.array(seen))
        values += (planner.value(round_, losses) + to_come).tolist()
        for client in range(clients):
            none, half, whole = options[:, client]
            latents.append(
                [
                    YES if max(half, whole) > none else NO,
                    YES if whole > half else NO,
                    train_latent,
                    0.0,
                    0.0,
                ]
            )
            voting = min(abs(max(half, whole) - none) / _WORTH, 1.0)
            # How much to send matters only where something is sent.
            amount = min(abs(whole - half) / _WORTH, 1.0) * (1.0 if chosen[client] else 0.2)
            mattering.append([voting, amount, 0.5, 0.5, 0.5])
            if done[client]:
                held[client] = Held(done[client] * min(budgets[client], space.r_max), round_)
        losses = planner.new_loss(round_, budgets, done, losses)
        reward -= float((losses + price * planner.cost(budgets, done)).mean())
        total += float((done * np.minimum(budgets, space.r_max)).mean())
    shown = (np.array(column) for column in (states, latents, values, mattering))
    return Demonstrations(*shown), Result(reward / rounds, total, float(losses.mean()))


def _report(budget_bits: float, rng: np.random.Generator) -> ClientReport:
    """Return a report with statistics that say nothing, or none: the teacher does not need them."""
    statistics = None
    if rng.random() < 0.5:
        statistics = DataStatistics(
            float(rng.uniform(6, 14)), float(rng.uniform(0.05, 0.9)), float(rng.uniform(1, 2.5))
        )
    return ClientReport(budget_bits=budget_bits, statistics=statistics)
