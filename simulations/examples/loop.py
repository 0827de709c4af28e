"""A federation in this process, looked into after every round.

Server and clients are objects here, so what a round did is there to be measured or changed: the
adapter, each client's head and samples, what the air carried. This one prints how far each round
has moved the adapter, and ends the run when it hardly moves.

    python -m simulations.examples.loop
"""

from __future__ import annotations

from contextlib import suppress

import torch

import fedlora
from fedlora.config import Scenario
from fedlora.report import MetricText
from simulations.in_process import Federation, Record

SHORT = {
    "federation.clients": 3,
    "train.rounds": 6,
    "train.steps": 4,
    "privacy.epsilon": None,
    "evaluate.baseline": False,
}


class Settled(Exception):
    """The adapter hardly moves any more."""


def train(scenario: Scenario, least: float = 0.02) -> list[float]:
    """Train until a round moves the adapter by less than a part of its length.

    Parameters
    ----------
    scenario, least
        What to run, and that part.

    Returns
    -------
    list
        The part by which each round has moved it.
    """
    record, moved = Record(), list[float]()
    federation = Federation(scenario, record)
    training = federation.server.training
    before = _flat(federation)

    def after_round() -> None:
        nonlocal before
        now = _flat(federation)
        moved.append(float((now - before).norm() / now.norm()))
        before = now
        last, told = record.rounds[-1], MetricText(record.rounds[-1]["metric_name"])
        bits = sum(sum(by_kind.values()) for by_kind in last["bits"].values())
        print(
            f"round {training.done}: {told.name} {told.text(last['metric'])}, the adapter moved "
            f"by {moved[-1]:.1%}, {bits / 1e6:.1f} Mbit crossed the cut"
        )
        if moved[-1] < least:
            raise Settled("training may end")

    training.after_round = after_round
    with suppress(Settled):
        training.run()
    federation.server.end()
    return moved


def _flat(federation: Federation) -> torch.Tensor:
    pairs = [(p.A, p.B) for p in federation.server.engine.projections]
    return torch.cat([factor.detach().flatten() for pair in pairs for factor in pair])


if __name__ == "__main__":
    train(fedlora.scenario("quickstart", SHORT))
