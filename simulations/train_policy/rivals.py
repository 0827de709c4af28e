"""How strategies do on the table of losses: the policy beside the rules that it has to beat.

Real strategies decide, so that what is compared is what runs; the table stands for training alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product, starmap

import numpy as np

from fedlora.ranks import ClientOutcome, ClientReport, RankSpace, RankStrategy
from simulations.train_policy.profile import Profile
from simulations.train_policy.setting import Setting
from simulations.train_policy.teacher import Fading, Result
from simulations.train_policy.warm_start import fading_of
from strategies.airllm import Policy, Weights
from strategies.airllm.strategy import AirLlm
from strategies.greedy import Greedy
from strategies.hold import Hold
from strategies.training import mean_rank

COLUMNS = ("channel", "snr_db", "strategy", "reward", "sent", "final_loss")
WEIGHTS = tuple(starmap(Weights, product((0.0, 0.15, 0.3, 0.6), (0.0, 4.0, 12.0))))
"""What the policy is asked for in the table that a training writes."""

_GAMES = 12


@dataclass(frozen=True)
class Game:
    """What is played.

    Attributes
    ----------
    profile
        Losses by round and rank.
    space
        Ranks to choose from.
    fading
        Of the channel.
    rounds, clients
        How many.
    price
        Nats that a whole deadline of air time costs.
    """

    profile: Profile
    space: RankSpace
    fading: Fading
    rounds: int
    clients: int
    price: float

    def play(self, strategy: RankStrategy, seed: int) -> Result:
        """Return what a strategy comes to, over channels that depend on the seed alone."""
        rng = np.random.default_rng(seed)
        unit_bits = self.space.bits(self.space.uniform(1))
        loss = np.full(self.clients, self.profile.losses[0, 0])
        reward, sent = 0.0, 0.0
        for round_ in range(1, self.rounds + 1):
            budgets = self.fading.draw(rng, self.clients)
            reports = {
                str(k): ClientReport(budget_bits=float(b) * unit_bits)
                for k, b in enumerate(budgets)
            }
            decided = strategy.allocate(round_, reports, self.space)
            ranks = np.array([mean_rank(decided[name].deliver, self.space) for name in reports])
            outcome = ClientOutcome(delivered=True)
            strategy.observe(round_, dict.fromkeys(reports, outcome))
            fresh = self.profile.loss(round_ / self.rounds, ranks)
            loss = np.where(ranks > 0, fresh, loss)
            reward -= float((loss + self.price * ranks / budgets).mean())
            sent += float(ranks.mean())
        return Result(reward / self.rounds, sent, float(loss.mean()))


def contenders(policy: Policy, rounds: int) -> Iterator[tuple[str, RankStrategy]]:
    """Return the rules without learning, and the policy at some weights."""
    yield "hold", Hold()
    yield 'greedy(train="shared")', Greedy(train="shared")
    yield 'greedy(every=2,train="shared")', Greedy(every=2, train="shared")
    for weights in WEIGHTS:
        told = vars(weights)
        label = ",".join(f"{name}={value:g}" for name, value in told.items())
        yield f"airllm({label})", AirLlm(policy=policy, rounds=rounds, **told)


def standings(
    setting: Setting, profile: Profile, space: RankSpace, policy: Policy
) -> list[dict[str, object]]:
    """Return what each contender comes to over each channel, with the keys ``COLUMNS``.

    Parameters
    ----------
    setting
        Channels, SNRs and price.
    profile
        Losses by round and rank.
    space
        Ranks to choose from.
    policy
        Whose weights are tried.
    """
    scenario, rows = setting.scenario, []
    for channel in setting.channels:
        for snr_db in setting.snrs_db:
            fading = fading_of(scenario, space, snr_db, rayleigh=channel == "rayleigh")
            rounds, clients = scenario.train.rounds, scenario.federation.clients
            game = Game(profile, space, fading, rounds, clients, setting.price)
            played: dict[str, list[Result]] = {}
            for seed in range(_GAMES if fading.rayleigh else 1):
                for name, strategy in contenders(policy, rounds):
                    played.setdefault(name, []).append(game.play(strategy, seed))
            for name, results in played.items():
                mean = np.mean([(r.reward, r.sent, r.final_loss) for r in results], axis=0)
                named = zip(COLUMNS[3:], (round(float(x), 4) for x in mean), strict=True)
                rows.append({"channel": channel, "snr_db": snr_db, "strategy": name, **dict(named)})
    return rows
