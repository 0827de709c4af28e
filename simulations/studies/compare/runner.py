"""Running trials side by side, and the references that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedlora.config import Scenario
from simulations.studies.compare.reward import Losses
from simulations.studies.compare.store import CompareFolder
from simulations.studies.compare.trial import Trial, run_reference, run_trial
from simulations.studies.kit import run_missing


@dataclass(frozen=True)
class Reference:
    """The run of a seed that the trials of this seed are held against."""

    seed: int

    @property
    def key(self) -> int:
        """What tells references apart."""
        return self.seed

    def __str__(self) -> str:
        """Return a few words for a line of progress."""
        return f"seed {self.seed}"


def run_all(
    folder: CompareFolder, scenario: Scenario, trials: Sequence[Trial], price: float, workers: int
) -> None:
    """Run the trials that the folder does not hold, and the references that they need.

    Parameters
    ----------
    folder
        Takes the results as they come.
    scenario
        What is compared.
    trials
        All trials of the comparison.
    price
        Nats that a whole deadline of air time costs.
    workers
        Processes; 0 means one for each core.
    """
    # The processes are the parallelism; more threads would only contend.
    scenario = replace(scenario, compute=replace(scenario.compute, threads=1))
    seeds = sorted({trial.seed for trial in folder.results.missing(trials)})
    run_missing(
        folder.references,
        [Reference(seed) for seed in seeds],
        reference_record,
        lambda _: (scenario,),
        python_path=scenario.python_path,
        workers=workers,
        title="references",
    )
    losses = {seed: folder.references.records[seed]["losses"] for seed in seeds}
    run_missing(
        folder.results,
        trials,
        trial_record,
        lambda trial: (scenario, losses[trial.seed], price),
        python_path=scenario.python_path,
        workers=workers,
    )


def reference_record(reference: Reference, scenario: Scenario) -> dict[str, Any]:
    """Run a reference and return its line."""
    return {"seed": reference.seed, "losses": run_reference(scenario, reference.seed)}


def trial_record(
    trial: Trial, scenario: Scenario, reference: Losses, price: float
) -> dict[str, Any]:
    """Run a trial and return its line."""
    return asdict(run_trial(scenario, trial, reference, price))
