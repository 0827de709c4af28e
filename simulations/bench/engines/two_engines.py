"""Two of the server's engines in turn, on the same batches of a scenario's rows as they are."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

from clients.simulated_data import SimulatedData
from fedlora.config import Scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from fedlora.server.compute.batch import ClientRows
from fedlora.server.compute.engine import SplitEngine
from fedlora.split import Checkpoint, model_folder
from fedlora.tasks import fitting_tokenizer, task_class

CLIENTS, TRAIN_ROWS, PAIRS = 8, 4, 8
SIZES = (("step", True, TRAIN_ROWS), ("evaluation", False, 16))
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


def seconds(
    engine: SplitEngine, batch: list[ClientRows], clock: Callable[[], float], *, train: bool
) -> float:
    """Return the seconds of a step, or of an evaluation's exchange."""
    begun = clock()
    outputs = engine.forward(batch, train=train)
    if train:
        engine.backward([torch.ones_like(z) for z in outputs], [float(TRAIN_ROWS)] * CLIENTS)
        engine.update.step(0)
    return clock() - begun


def ratios(
    ours: SplitEngine, other: SplitEngine, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return quartiles of what the other takes over what ours takes, by what is done."""
    batches = Batches(ours.scenario, Checkpoint(model_folder(ours.scenario.model.path)), ours)
    found = {}
    for name, train, rows in SIZES:
        pairs = []
        for pair in range(PAIRS + 1):
            batch, taken = batches.draw(rows), {}
            for engine in (ours, other) if pair % 2 else (other, ours):
                taken[engine] = seconds(engine, batch, clock, train=train)
            if pair:  # in the first one memory warms up
                pairs.append(taken[other] / taken[ours])
        found[name] = statistics.quantiles(pairs, n=4)
    return found


def report(
    told: str | None,
    which: str,
    title: str,
    build: Callable[[Scenario, Checkpoint], tuple[SplitEngine, SplitEngine]],
    threads: int = 1,
) -> None:
    """Print the ratio for the scenario that the command line names.

    Parameters
    ----------
    told
        What the command does.
    which
        Which scenarios it takes.
    title
        What is over what.
    build
        Gives the engine that is looked at, and the other.
    threads
        torch's. Of one the processor's seconds count, of more those that go by.
    """
    parser = argparse.ArgumentParser(description=told)
    parser.add_argument("scenario", help=which)
    parser.add_argument("--set", action="append", default=[], help="as for `fedlora run`")
    given = parser.parse_args()
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    overrides = [f"federation.clients={CLIENTS}", *given.set]
    scenario = with_overrides(find_scenario(given.scenario), overrides)
    engines = build(scenario, Checkpoint(model_folder(scenario.model.path)))
    for name, (first, median, third) in ratios(*engines, clock).items():
        print(f"{name}: {title} {median:.2f} ({first:.2f} to {third:.2f})")
