"""One seed, trained split and unsplit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from fedlora.config import Scenario
from simulations.in_process import Record, connect
from simulations.unsplit import Unsplit

_FIRST_STEPS = 20


class _Losses(Record):
    """Keeps the training loss of every step too."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def append_event(self, event: str, /, **fields: Any) -> None:
        """See ``Recorder``."""
        if event == "step" and fields.get("phase") == "train":
            self.losses.append(fields["loss"])


@dataclass(frozen=True)
class Trial:
    """A seed of data, partition, model and batches."""

    seed: int

    @property
    def key(self) -> int:
        """What tells trials apart."""
        return self.seed

    def __str__(self) -> str:
        """Return a few words for a line of progress."""
        return f"seed {self.seed}"


def run_trial(trial: Trial, base: Scenario) -> dict[str, Any]:
    """Train a scenario split and unsplit (plain PEFT) on the same batches; return a row."""
    scenario = replace(base, seed=trial.seed)
    record = _Losses()
    server = connect(scenario, record)
    unsplit = Unsplit(scenario, server.engine.adapter())
    server.training.run()
    server.end()
    result = unsplit.train()
    last = record.rounds[-1]
    first = zip(record.losses[:_FIRST_STEPS], result.losses, strict=False)
    return {
        "seed": scenario.seed,
        "metric_before": server.training.outcome.before,
        "split": last["metric"],
        "unsplit": result.accuracy if result.accuracy is not None else math.exp(result.loss),
        "split_loss": last["loss"],
        "unsplit_loss": result.loss,
        "largest_loss_difference_first_20_steps": max(abs(a - b) for a, b in first),
    }
