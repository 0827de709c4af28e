"""What the last block saves at one token a row: ``python -m simulations.bench.pooled``.

The server's step and its evaluation, rows of a scenario as they are, with the last block at all
tokens and at the pooled ones alone, the same batches in turn.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch

from clients.simulated_data import SimulatedData
from fedlora.config import Scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from fedlora.server.compute.batch import ClientRows
from fedlora.server.compute.engine import SplitEngine
from fedlora.split import Checkpoint, model_folder
from fedlora.tasks import fitting_tokenizer, task_class
from simulations.refusals import one_sentence

CLIENTS, TRAIN_ROWS, EVALUATION_ROWS, PAIRS = 8, 4, 16, 8
SIZES = (("step", True, TRAIN_ROWS), ("evaluation", False, EVALUATION_ROWS))
"""What is done, whether it trains, and with how many rows of a client."""


class Batches:
    """Random activations of a scenario's rows, lengths as they are."""

    def __init__(self, scenario: Scenario, checkpoint: Checkpoint, engine: SplitEngine) -> None:
        self._scenario, self._engine = scenario, engine
        tokenizer = fitting_tokenizer(task_class(scenario.task.kind), checkpoint)
        if tokenizer is None:
            raise FedloraError(
                f"{scenario.name} has no texts; take a scenario whose task reads some"
            )
        self._tokenizer = tokenizer
        self._data = SimulatedData(scenario, CLIENTS)
        self._random = random.Random(0)

    def draw(self, rows: int) -> list[ClientRows]:
        """Return ``rows`` rows of each client."""
        return [self._rows(client, rows) for client in range(CLIENTS)]

    def _rows(self, client: int, rows: int) -> ClientRows:
        data, task = self._scenario.data, self._scenario.task
        records = self._random.sample(self._data.rows_of(client)[0], rows)
        encode = self._tokenizer.encode
        lengths = [len(encode(record[data.text], task.max_length)) for record in records]
        states = torch.randn(sum(lengths), self._engine.geometry.activation_width)
        return ClientRows(states, lengths, self._engine.full_ranks(), str(client))


def seconds(engine: SplitEngine, batch: list[ClientRows], *, train: bool) -> float:
    """Return the processor's seconds of a step, or of an evaluation's exchange."""
    begun = time.process_time()
    outputs = engine.forward(batch, train=train)
    if train:
        engine.backward([torch.ones_like(z) for z in outputs], [float(TRAIN_ROWS)] * CLIENTS)
        engine.update.step(0)
    return time.process_time() - begun


def measure(scenario: Scenario) -> dict[str, list[float]]:
    """Return quartiles of the ratio, all tokens to the pooled ones, by what is done."""
    checkpoint = Checkpoint(model_folder(scenario.model.path))
    alone, everywhere = SplitEngine(checkpoint, scenario), SplitEngine(checkpoint, scenario)
    if not alone.prefix.one_token:
        raise FedloraError(
            f"all tokens of {scenario.name} pass the last block (task.pool is "
            f"{scenario.task.pool!r}); take one that pools cls or last, as --set task.pool=cls does"
        )
    everywhere.prefix.one_token = False
    batches = Batches(scenario, checkpoint, alone)
    found = {}
    for name, train, rows in SIZES:
        ratios = []
        for pair in range(PAIRS + 1):
            batch, taken = batches.draw(rows), {}
            for engine in (alone, everywhere) if pair % 2 else (everywhere, alone):
                taken[engine] = seconds(engine, batch, train=train)
            if pair:  # in the first one memory warms up
                ratios.append(taken[everywhere] / taken[alone])
        found[name] = statistics.quantiles(ratios, n=4)
    return found


def main() -> None:
    """Print the ratio of a scenario."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", help="one whose task pools one token of a row")
    parser.add_argument("--set", action="append", default=[], help="as for `fedlora run`")
    given = parser.parse_args()
    torch.set_num_threads(1)
    overrides = [f"federation.clients={CLIENTS}", *given.set]
    scenario = with_overrides(find_scenario(given.scenario), overrides)
    for name, (first, median, third) in measure(scenario).items():
        print(f"{name}: all tokens / one of each row {median:.2f} ({first:.2f} to {third:.2f})")


if __name__ == "__main__":
    with one_sentence():
        main()
