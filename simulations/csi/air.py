"""How many bytes a forecast's training sends, over those of the raw histories that it trains on.

``python -m simulations.csi.air`` plans a run of ``csi-prediction``, or of a scenario that is named,
as ``fedlora plan`` does: for each kind what all clients send and are sent in training, weights
that they begin with among it, over ``history x features`` fp32 numbers a sample each time that it
is trained on. Evaluation is not in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from fedlora.commands.plan_view import plan
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from simulations.options import open_scenario
from simulations.refusals import one_sentence

_FLOAT_BYTES = 4


def raw_bytes(scenario: Scenario, samples: int) -> int:
    """Return the bytes of so many samples' histories in fp32."""
    task = scenario.task.forecast
    return _FLOAT_BYTES * samples * task.history * task.features


def trained_samples(scenario: Scenario) -> int:
    """Return how many samples all clients train on in a run, each as often as it is taken."""
    train = scenario.train
    return train.total_steps * train.accumulate * train.batch_size * scenario.federation.clients


def over_raw(scenario: Scenario) -> dict[str, float]:
    """Return what a run will send of each kind, such as ``up activation``, over its raw histories.

    Raises
    ------
    FedloraError
        When it forecasts nothing, or its rows are not here.
    """
    if scenario.task.kind != "forecast":
        raise FedloraError(
            f"task.kind is {scenario.task.kind}, which has no histories; name a scenario of kind "
            "forecast, such as csi-prediction"
        )
    planned, _ = plan(scenario)
    raw = raw_bytes(scenario, planned.samples)
    bits: Mapping[str, Mapping[str, int]] = planned.totals["bits"]
    return {f"{way} {kind}": n / 8 / raw for way, own in bits.items() for kind, n in own.items()}


def lines(shares: Mapping[str, float]) -> list[str]:
    """Return a line for each kind that is sent, the most first, and one for all."""
    sent = sorted(((part, kind) for kind, part in shares.items() if part), reverse=True)
    return [f"{part:.3f}  {kind}" for part, kind in (*sent, (sum(shares.values()), "all"))]


def main(arguments: Sequence[str]) -> None:
    """Print what a scenario's training sends over its raw histories."""
    parser = argparse.ArgumentParser(prog="python -m simulations.csi.air", description=__doc__)
    parser.add_argument("scenario", nargs="?", default="csi-prediction")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", dest="overrides")
    given = parser.parse_args(arguments)
    print("\n".join(lines(over_raw(open_scenario(given.scenario, given.overrides)))))


if __name__ == "__main__":
    with one_sentence():
        main(sys.argv[1:])
