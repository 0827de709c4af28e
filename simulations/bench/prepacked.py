"""What matrices laid out beforehand save: ``python -m simulations.bench.prepacked SCENARIO``.

The server's step and its evaluation, rows of a scenario as they are, with plain matrices and with
those of ``compute.prepack_mib``, the same batches in turn.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

import torch

from fedlora.config import Scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from fedlora.server.compute.engine import SplitEngine
from fedlora.split import Checkpoint, PrepackedLinear, model_folder
from simulations.bench.pooled import CLIENTS, PAIRS, SIZES, Batches, seconds
from simulations.refusals import one_sentence


def measure(scenario: Scenario) -> dict[str, list[float]]:
    """Return quartiles of the ratio, plain to laid out, by what is done."""
    checkpoint = Checkpoint(model_folder(scenario.model.path))
    own = SplitEngine(checkpoint, scenario)
    if not any(isinstance(module, PrepackedLinear) for module in own.blocks.modules()):
        raise FedloraError(
            f"{scenario.name} has no matrices laid out beforehand (compute.prepack_mib is "
            f"{scenario.compute.prepack_mib}); take a scenario with blocks in fp32 on the CPU, or "
            "allow more"
        )
    without = replace(scenario, compute=replace(scenario.compute, prepack_mib=0))
    plain = SplitEngine(checkpoint, without)
    batches = Batches(scenario, checkpoint, own)
    found = {}
    for name, train, rows in SIZES:
        ratios = []
        for pair in range(PAIRS + 1):
            batch, taken = batches.draw(rows), {}
            for engine in (own, plain) if pair % 2 else (plain, own):
                taken[engine] = seconds(engine, batch, train=train)
            if pair:  # in the first one memory warms up
                ratios.append(taken[plain] / taken[own])
        found[name] = statistics.quantiles(ratios, n=4)
    return found


def main() -> None:
    """Print the ratio of a scenario."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", help="one whose blocks compute in fp32 on the CPU")
    parser.add_argument("--set", action="append", default=[], help="as for `fedlora run`")
    given = parser.parse_args()
    torch.set_num_threads(1)
    overrides = [f"federation.clients={CLIENTS}", *given.set]
    scenario = with_overrides(find_scenario(given.scenario), overrides)
    for name, (first, median, third) in measure(scenario).items():
        print(f"{name}: plain / laid out beforehand {median:.2f} ({first:.2f} to {third:.2f})")


if __name__ == "__main__":
    with one_sentence():
        main()
