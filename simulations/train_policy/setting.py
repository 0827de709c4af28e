"""In what a policy is trained: which channels, SNRs and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedlora.channel import build_channel
from fedlora.checks import number
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from simulations.train_policy.seeds import FIRST_SEED
from strategies.airllm import MOST_BIT_PRICE, MOST_END_WEIGHT, Weights

_ZERO = 0.25
"""How often each weight is 0, its limit, which random numbers alone would never meet."""


@dataclass(frozen=True)
class Setting:
    """The distribution of episodes.

    Attributes
    ----------
    scenario
        Model, data, training and bandwidth.
    seed
        Of the training itself.
    snrs_db
        Mean SNRs to draw from, in dB.
    channels
        Channel models to draw from.
    seeds
        Seeds to draw from.
    price
        Nats that a whole deadline of air time costs.
    weighted
        Whether episodes differ in what bits and the end are worth; else the reward alone counts.
    """

    scenario: Scenario
    seed: int
    snrs_db: Sequence[float]
    channels: Sequence[str]
    seeds: Sequence[int]
    price: float
    weighted: bool = True

    def __post_init__(self) -> None:
        if self.scenario.seed >= FIRST_SEED:
            raise FedloraError(
                f"seed is {self.scenario.seed}; seeds from {FIRST_SEED} on train policies, so set "
                "a smaller one for the scenario"
            )
        if self.scenario.channel.deliver_every == 0:
            raise FedloraError(
                "channel.deliver_every is 0, so that no adapter is ever sent; set it to 1 or more"
            )
        number("--price", self.price)
        if len(set(self.channels)) < len(self.channels):
            raise FedloraError(
                f"--channels is {','.join(self.channels)}; name each channel model once"
            )
        for model in self.channels:
            if build_channel(replace(self.scenario.channel, model=model), 0).measured:
                raise FedloraError(
                    f"--channels names {model!r}, which is what devices measure; choose simulated "
                    "models, such as awgn,rayleigh"
                )

    def episode(self, number: int) -> Scenario:
        """Return the scenario of an episode, drawn from the seed and its number."""
        rng = np.random.default_rng([self.seed, number])
        # SNRs and channels take turns, so that few episodes meet all of them alike.
        places = len(self.snrs_db) * len(self.channels)
        order = np.random.default_rng([self.seed, 1, number // places]).permutation(places)
        snr, channel = divmod(int(order[number % places]), len(self.channels))
        base = self.scenario
        return replace(
            base,
            seed=int(rng.choice(np.array(self.seeds))),
            channel=replace(
                base.channel, model=self.channels[channel], snr_db=(float(self.snrs_db[snr]),)
            ),
            evaluate=replace(base.evaluate, every=1, baseline=False),
            compute=replace(base.compute, threads=1),
        )

    def weights(self, rng: np.random.Generator) -> Weights:
        """Draw what deliveries are to be worth, so that one policy learns all of it."""
        bit_price = float(MOST_BIT_PRICE * rng.random() ** 2)
        end_weight = float((1 + MOST_END_WEIGHT) ** rng.random() - 1)
        bits_matter, end_matters = (self.weighted * (rng.random(2) >= _ZERO)).tolist()
        return Weights(bit_price * bits_matter, end_weight * end_matters)

    def weights_of(self, episode: int) -> Weights:
        """Return what an episode's deliveries are worth."""
        return self.weights(np.random.default_rng([self.seed, episode, 2]))
