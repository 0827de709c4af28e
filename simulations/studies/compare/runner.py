"""Running trials side by side, one process for each core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import replace
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedlora.config import Scenario
from fedlora.registry import use_python_path
from simulations.studies.compare.store import CompareFolder
from simulations.studies.compare.trial import Trial, run_reference, run_trial
from simulations.studies.workers import worker_pool


def run_missing(
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
    missing = [trial for trial in trials if trial.key not in folder.finished]
    seeds = sorted({trial.seed for trial in missing} - set(folder.references))
    with worker_pool(workers, _begin, scenario) as pool:
        references = {pool.submit(run_reference, scenario, seed): seed for seed in seeds}
        _follow(
            "references",
            references,
            folder.add_reference,
        )
        runs = {
            pool.submit(run_trial, scenario, trial, folder.references[trial.seed], price): trial
            for trial in missing
        }
        _follow("trials", runs, lambda _, result: folder.add(result))


def _follow(title: str, futures: dict[Future[Any], Any], keep: Callable[[Any, Any], None]) -> None:
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    if not futures:
        return
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=len(futures), last="")
        for future in as_completed(futures):
            about = futures[future]
            keep(about, future.result())
            label = " ".join(map(str, about.key)) if isinstance(about, Trial) else f"seed {about}"
            progress.update(task, advance=1, last=label)


def _begin(scenario: Scenario) -> None:
    torch.set_num_threads(1)
    use_python_path(scenario.python_path)
