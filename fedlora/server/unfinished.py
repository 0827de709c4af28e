"""A summary of a run that ended before its last round."""

from __future__ import annotations

import itertools
import math
import shlex

from fedlora.config import load_scenario
from fedlora.lora.export import Adapter
from fedlora.report import RunFolder, Summary, client_ids
from fedlora.server.exchange.spending import statement_of_rounds
from fedlora.storage.state import RoundStates


def going_on(folder: RunFolder) -> str:
    """Say how a run that ended before its time is gone on with."""
    if RoundStates(folder.checkpoint).rounds():
        return f"go on with it by: fedlora resume {shlex.quote(str(folder.path))}"
    return f"no round was finished, so there is nothing to go on from; files: {folder.path}"


def summarise_rounds(folder: RunFolder) -> None:
    """Write ``summary.json`` from the rounds that were finished and the adapter after the last."""
    rounds = folder.read_metrics()
    scenario = load_scenario(folder.scenario)
    adapter = Adapter.load(folder.adapter, takes_also=True)
    trained = [*itertools.chain.from_iterable(adapter.factors.values()), *adapter.also.values()]
    folder.write_summary(
        Summary.from_rounds(
            rounds,
            metric_name=rounds[-1].get("metric_name", ""),
            higher_is_better=rounds[-1].get("higher_is_better", True),
            clients=len(client_ids(rounds)),
            seed=scenario.seed,
            trainable_parameters=sum(math.prod(tensor.shape) for tensor in trained),
            privacy=statement_of_rounds(scenario, rounds, folder.read_events()[0]),
            extra={"task": scenario.task.kind, "unfinished": True},
        )
    )
