"""Training records whose label is a coin, planted to be guessed from the final model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clients.simulated_data import SimulatedData
from fedlora.config import Scenario
from fedlora.tasks import Sample
from simulations.audit.attacks.auc import auc
from simulations.audit.attacks.canaries import epsilon_lower_bound
from simulations.audit.final_model import losses, trained_model
from simulations.audit.recording import Observed, sample_order

CANARIES = 128
"""Most canaries that are planted."""


@dataclass(frozen=True)
class Canary:
    """A training record whose label is one of two wrong ones, by a coin."""

    client: int
    row: int
    labels: tuple[str, str]
    coin: bool

    @property
    def planted(self) -> str:
        """The label that it was given."""
        return self.labels[self.coin]


def plant(scenario: Scenario, steps: int, seed: int = 0) -> list[Canary]:
    """Choose canaries among the records that so many steps train on, at most a tenth of them."""
    data = SimulatedData(scenario, scenario.federation.clients)
    labels = data.labels
    generator = np.random.default_rng(seed)
    trained = [
        (client, row)
        for client in range(scenario.federation.clients)
        for row in sorted(set(sample_order(scenario, len(data.rows_of(client)[0]), client, steps)))
    ]
    chosen = generator.permutation(len(trained))[: min(CANARIES, len(trained) // 10)]
    canaries = []
    for index in chosen.tolist():
        client, row = trained[index]
        true = data.rows_of(client)[0][row][data.label_column]
        wrong = [label for label in labels if label != true]
        if len(wrong) < 2:  # two classes: the coin is between the right and the wrong one
            wrong = list(labels)
        first, second = generator.choice(len(wrong), 2, replace=False).tolist()
        coin = bool(generator.random() < 0.5)
        canaries.append(Canary(client, row, (wrong[first], wrong[second]), coin))
    return canaries


def planted(canaries: Sequence[Canary]) -> dict[int, dict[int, str]]:
    """Return the canaries' labels as ``observe`` takes them."""
    found: dict[int, dict[int, str]] = defaultdict(dict)
    for canary in canaries:
        found[canary.client][canary.row] = canary.planted
    return dict(found)


def guess_canaries(
    observed: Observed, canaries: Sequence[Canary], delta: float
) -> dict[str, float]:
    """Guess each canary's coin from the final model, and bound epsilon from below by it.

    Nothing is returned where all coins happen to have fallen alike.
    """
    model = trained_model(observed)
    index = {label: i for i, label in enumerate(observed.parts.model.task.labels)}
    truth = [client.door.truth(client.train) for client in observed.clients]
    samples = [truth[c.client][c.row] for c in canaries]
    first, second = (
        losses(
            model,
            [Sample(s.ids, index[c.labels[k]]) for s, c in zip(samples, canaries, strict=True)],
        )
        for k in (0, 1)
    )
    scores = (first - second).numpy()
    coins = np.array([c.coin for c in canaries])
    if len(set(coins.tolist())) < 2:
        return {}
    judged = auc(scores, coins)
    # Those whose score is far from the median are the guesses that the attacker is sure of.
    distance = scores - np.median(scores)
    sure = np.argsort(-np.abs(distance))[: len(canaries) // 2]
    correct = int(((distance[sure] > 0) == coins[sure]).sum())
    return {
        "auc": judged.value,
        "low": judged.low,
        "high": judged.high,
        "canaries": len(canaries),
        "guesses": len(sure),
        "correct": correct,
        "epsilon_lower_bound": epsilon_lower_bound(len(canaries), len(sure), correct, delta),
    }
