"""One run with or without hostile clients, and what came of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from fedlora.config import RobustConfig, Scenario, scenario_from_toml
from simulations.in_process import Record, connect
from simulations.studies.poison.attackers import POISONS, poisoner

AVERAGES = ("mean", "median", "trimmed_mean", "norm_filter")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run to do.

    Attributes
    ----------
    average
        Its ``robust.average``; the other keys of the section are the scenario's.
    attack
        Name of an attack, or ``none``.
    hostile
        Number of hostile clients.
    base
        The scenario, as TOML.
    """

    average: str
    attack: str
    hostile: int
    base: str

    @property
    def key(self) -> Trial:
        """What tells trials apart."""
        return self

    def __str__(self) -> str:
        """Return a few words for a line of progress; the scenario is all the trials'."""
        return f"{self.average} {self.attack}"

    def scenario(self) -> Scenario:
        """Return the scenario with this average; raises ``FedloraError`` when they do not fit."""
        base = scenario_from_toml(self.base)
        robust: RobustConfig = dataclasses.replace(
            base.robust, average=self.average, hostile=self.hostile
        )
        return dataclasses.replace(base, robust=robust)


def run_trial(trial: Trial) -> dict[str, Any]:
    """Run it in this process; return held-out metric and loss after the last round."""
    record = Record()
    hostile = [] if trial.attack == "none" else [str(k) for k in range(trial.hostile)]
    wrap = poisoner(hostile, POISONS.get(trial.attack, POISONS["quiet"]))
    run = connect(trial.scenario(), record, wrap=wrap)
    run.training.run()
    run.end()
    last = record.rounds[-1]
    return {
        "trial": dataclasses.asdict(trial),
        "metric": last.get("metric"),
        "metric_name": last.get("metric_name"),
        "loss": last.get("loss"),
        "lost": run.cohort.lost,
    }
