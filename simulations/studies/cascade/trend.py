"""Held-out loss against rounds over sigma, and what the signal-to-noise ratio says it should be.

AdamW divides a gradient by its root mean square, noise included, so of an update the part
sqrt(SNR / (1 + SNR)) goes where it would have gone without noise. A noisy run is therefore expected
to go down the noiseless curve more slowly: after t rounds it is where the noiseless run was at
sum over rounds of mean over projections of sqrt(SNR / (1 + SNR)). What noise adds beyond that, by
wandering about a minimum, is not in the prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean

import numpy as np

from fedlora.config import PrivacyPolicy, Scenario
from fedlora.errors import FedloraError
from simulations.in_process import Record, connect


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes
    ----------
    sigma
        Noise on each upload over the clipping norm; 0 without noise.
    losses
        Held-out loss after each round, in nats.
    speed
        For each round the part of an update that is signal.
    """

    sigma: float
    losses: list[float]
    speed: list[float]

    def predicted(self, clean: Curve, start: float) -> list[float]:
        """Return the losses that the noiseless run and this one's speed lead to."""
        time = np.cumsum(self.speed)
        places = np.arange(len(clean.losses) + 1)
        losses: list[float] = np.interp(time, places, [start, *clean.losses]).tolist()
        return losses


def run_curve(scenario: Scenario, sigma: float) -> Curve:
    """Run a scenario at some noise; 0 runs it without."""
    privacy = PrivacyPolicy()
    if sigma > 0:
        privacy = replace(scenario.privacy, epsilon=None, sigma=sigma, probe_every=1)
    evaluate = replace(scenario.evaluate, every=1, baseline=False, report=True)
    record = Record()
    server = connect(replace(scenario, privacy=privacy, evaluate=evaluate), record, workers=1)
    server.training.run()
    server.end()
    losses = [loss for item in record.rounds if (loss := item["loss"]) is not None]
    if len(losses) < len(record.rounds):
        raise FedloraError(
            f"the run at sigma {sigma:g} evaluated no row: no client has any that is held out; "
            "raise data.holdout"
        )
    ratios = [item.get("gradient_snr") for item in record.rounds]
    speed = [1.0 if r is None else mean((x / (1 + x)) ** 0.5 for x in r) for r in ratios]
    return Curve(sigma, losses, speed)
