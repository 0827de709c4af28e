"""``fedlora bench``: every experiment in a process of its own, a table, and a JSON file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedlora.errors import FedloraError
from fedlora.storage import check_new_file
from simulations.bench.context import QUICK, Figure, Settings
from simulations.bench.experiments import NO_MMAP_ENVIRONMENT, Experiment, experiments
from simulations.bench.models import is_here
from simulations.bench.tables import print_figures
from simulations.options import OverwriteOption
from simulations.progress import Bars

_PROGRAM = "simulations.bench.child"


def bench(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Run the experiments whose name begins so, such as `speed.gpt2`.")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny models and few steps: shows that all works.")
    ] = False,
    pairs: Annotated[
        int | None, typer.Option(min=2, help="Timed steps of each contest (default 5).")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure speed and memory beside plain PEFT on the same batches.

    Every ratio is the median over neighbouring steps, so that other work on the machine disturbs it
    little; tokens a second it does disturb. A full run takes about half an hour on 2 cores.
    """
    settings = QUICK if quick else Settings(pairs=pairs or Settings.pairs)
    content: dict[str, Any] = {"settings": asdict(settings), "machine": {}, "figures": {}}
    check_new_file(json_file, "--json", overwrite=overwrite)
    figures: list[Figure] = []
    try:
        for name, machine, found in measure(settings, only, Console(stderr=True)):
            figures += found
            content["machine"][name] = machine
            content["figures"] |= {figure.name: figure.to_dict() for figure in found}
            if json_file is not None:
                _write(json_file, content)
    finally:  # what was measured before an interruption or a failure is shown all the same
        print_figures(figures, Console())


def measure(
    settings: Settings, only: str, console: Console
) -> Iterator[tuple[str, Mapping[str, Any], list[Figure]]]:
    """Run the experiments, and yield the name, the machine's facts and the figures of each.

    Raises
    ------
    FedloraError
        When no experiment has such a name, or one fails.
    """
    known = experiments(settings)
    chosen = [e for e in known if e.name.startswith(only)]
    if not chosen:
        names = ", ".join(e.name for e in known)
        raise FedloraError(f"no experiment's name begins with {only!r}; there are {names}")
    absent = [e for e in chosen if not settings.tiny and not is_here(e.model)]
    for experiment in absent:
        console.print(f"{experiment.name} is left out: its model or data is not on this machine")
    chosen = [e for e in chosen if e not in absent]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        tempfile.TemporaryDirectory(prefix="fedlora-bench-") as folder,
        Bars(*columns, console=console) as progress,
    ):
        bar = progress.add_task("bench", total=sum(e.ticks(settings) for e in chosen))
        for group in _groups(chosen, settings):
            for kind, value in _events(group, settings, folder):
                if kind == "begin":
                    name = value
                    progress.update(bar, description=name)
                elif kind == "tick":
                    progress.advance(bar)
                else:
                    found = [Figure.from_dict(*item) for item in value["figures"].items()]
                    yield name, value["machine"], found


def _groups(chosen: list[Experiment], settings: Settings) -> list[list[Experiment]]:
    """Return which experiments share a process: none, except where no figure matters."""
    if not settings.tiny:
        return [[experiment] for experiment in chosen]
    groups = [[e for e in chosen if e.no_mmap == no_mmap] for no_mmap in (False, True)]
    return [group for group in groups if group]


def _events(group: list[Experiment], settings: Settings, folder: str) -> Iterator[tuple[str, Any]]:
    """Run experiments in a process with their allocator, and yield what it says."""
    names = [experiment.name for experiment in group]
    order = {"names": names, "settings": asdict(settings), "folder": folder}
    # As in simulations: on a machine that others use, too, a thread that spins holds up the rest.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if group[0].no_mmap:
        environment |= NO_MMAP_ENVIRONMENT
    ended = 0
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.close()
        for line in process.stdout:
            kind, value = json.loads(line)
            if kind == "error":
                raise FedloraError(value)
            ended += kind == "end"
            yield kind, value
        status = process.wait()
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:] or ["it said nothing"]
    if ended < len(group):
        raise FedloraError(f"experiment {names[ended]} ended with status {status}: {last[0]}")


def _write(file: Path, content: Mapping[str, Any]) -> None:
    try:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise FedloraError(
            f"cannot write {file}: {error.strerror}; choose another --json"
        ) from None
