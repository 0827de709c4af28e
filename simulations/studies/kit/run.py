"""Running the trials of a study that are not there yet, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedlora.blame import naming_plugins
from fedlora.errors import FedloraError
from fedlora.registry import use_python_path
from fedlora.report import seconds_text
from simulations.studies.kit.results import Record, Results, T, Trial
from simulations.studies.kit.workers import processes, worker_pool


def run_missing(
    results: Results,
    trials: Sequence[T],
    run: Callable[..., Record],
    shared: Callable[[T], tuple[Any, ...]],
    *,
    python_path: str = "",
    workers: int = 0,
    title: str = "trials",
) -> None:
    """Run the trials that are missing, and keep each as soon as it ends.

    Parameters
    ----------
    results
        Takes them.
    trials
        All trials of the study.
    run
        A function of a module, called as ``run(trial, *shared(trial))`` in a process of its own.
    shared
        Returns what it needs beside a trial; all of it is pickled.
    python_path
        Folder of the scenario's plug-ins.
    workers
        Processes; 0 means one for each core.
    title
        What the trials are called while they run.

    Raises
    ------
    FedloraError
        When a trial cannot be run or a process was killed; what has ended is kept.
    """
    missing = results.missing(trials)
    if not missing:
        return
    console, ended, began = Console(stderr=True), 0, time.monotonic()
    if not console.is_terminal:
        side_by_side = min(processes(workers), len(missing))
        console.print(f"{title}: {len(missing)} to run, {side_by_side} at a time", highlight=False)
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}", markup=False),
    )
    with (
        worker_pool(workers, use_python_path, python_path) as pool,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(title, total=len(missing), last="")
        futures = {pool.submit(_named, run, trial, *shared(trial)): trial for trial in missing}
        for future in as_completed(futures):
            try:
                results.add(future.result())
            except BrokenProcessPool:
                raise FedloraError(
                    "a process of the study was ended from outside, as for want of memory; what "
                    "was finished is kept: give fewer --workers and start it again"
                ) from None
            ended, label = ended + 1, _label(futures[future])
            progress.update(task, advance=1, last=label)
            if not console.is_terminal:  # a log has a line each in place of a bar
                told = f"{title} {ended}/{len(missing)}: {label}"
                left_s = (time.monotonic() - began) / ended * (len(missing) - ended)
                told += f", about {seconds_text(left_s)} left" if ended < len(missing) else ""
                console.print(told, markup=False, highlight=False, soft_wrap=True)


def _named(run: Callable[..., Record], *arguments: Any) -> Record:
    """Run a trial; what a plug-in raises becomes a sentence here, where it is known whose it is."""
    with naming_plugins():
        return run(*arguments)


def _label(trial: Trial) -> str:
    """Return what a trial is called: by its own words, where it has some."""
    key = trial.key
    if type(trial).__str__ is not object.__str__:
        return str(trial)
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
