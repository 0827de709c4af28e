"""Predicted and measured noise energy in every projection of a scenario's model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from clients.edge_client import EdgeClient
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.link import Batch
from fedlora.privacy.mechanisms import Full, SystemNoise, mechanism_of, release
from fedlora.server.compute import ClientRows, SplitEngine
from simulations.in_process import Handler, Record, connect


@dataclass(frozen=True)
class Energy:
    """One projection.

    Attributes
    ----------
    layer, name
        Which it is.
    predicted
        Expected energy of the noise in the gradients of A and B together, from probes.
    measured
        The mean over draws of the mechanism itself.
    """

    layer: int
    name: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative difference of the prediction."""
        return self.predicted / self.measured - 1.0


def compare(scenario: Scenario, draws: int) -> list[Energy]:
    """Train a scenario, then send noise back through its model, by prediction and in truth.

    Parameters
    ----------
    scenario
        Under privacy, with the release ``full``.
    draws
        Backward passes of each kind.
    """
    mechanism = mechanism_of(scenario.privacy)
    if not isinstance(mechanism, Full):
        raise FedloraError(
            f"privacy.release is {scenario.privacy.release}; set full, whose noise is added to the "
            "gradient itself"
        )
    clients: list[EdgeClient] = []

    def keep(client: EdgeClient) -> Handler:
        clients.append(client)
        return client.handle

    server = connect(scenario, Record(), workers=1, wrap=keep)
    server.training.run()
    engine, space = server.engine, server.training.ranking.space
    batches, cohort = server.training.batches, server.cohort
    replies = cohort.exchange({c: Batch(**batches.fields(c)) for c in cohort.clients})
    batch = batches.read(replies, scenario.train.batch_size)
    rows = [ClientRows(a.packed, a.lengths, engine.full_ranks(), c) for c, a in batch.items()]
    z = engine.forward(rows, train=True)
    sigmas = [client.release.spent()["sigma"] for client in clients]
    policy, noise = scenario.privacy, SystemNoise()

    def predicted() -> list[torch.Tensor | None]:
        return [mechanism.probe(part, None, s) for part, s in zip(z, sigmas, strict=True)]

    def real() -> list[torch.Tensor | None]:
        return [
            release(
                torch.zeros_like(part),
                [1] * len(part),
                clip_norm=policy.clip_norm,
                sigma=sigma,
                noise=noise,
            ).values
            for part, sigma in zip(z, sigmas, strict=True)
        ]

    found = [_mean_energy(engine, draw, draws) for draw in (predicted, real)]
    return [
        Energy(p.layer, p.name, a, b) for p, a, b in zip(space.projections, *found, strict=True)
    ]


def _mean_energy(
    engine: SplitEngine, draw: Callable[[], Sequence[torch.Tensor | None]], draws: int
) -> list[float]:
    totals = [0.0] * len(engine.projections)
    for _ in range(draws):
        energies = engine.energies(draw())
        totals = [a + b for a, b in zip(totals, energies, strict=True)]
    return [total / draws for total in totals]
