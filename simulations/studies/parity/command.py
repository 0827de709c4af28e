"""``fedlora parity``: train a scenario split and unsplit, and compare."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedlora.errors import FedloraError
from fedlora.storage import check_new_file, dated_folder, json_line, replace_file
from simulations.options import OverwriteOption, SetOption, WorkersOption, looking, open_scenario

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fedlora.config import Scenario


def parity(
    scenario: Annotated[str, typer.Argument(help="Scenario with all clients in every round.")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs, with seeds from 0.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; a study that is there is gone on with (default: `parity-TIME`)."
        ),
    ] = None,
    workers: WorkersOption = 0,
    set_: SetOption = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a scenario split and unsplit (plain PEFT) on the same batches, and compare."""
    from simulations.studies.kit import StudyFolder, run_missing
    from simulations.studies.parity.trial import Trial, run_trial

    base = open_scenario(scenario, set_, check=False, texts="fedlora parity")
    trains_head = base.task.kind == "classification" and base.head.share != "step"
    if trains_head or base.federation.clients_per_round or base.train.accumulate > 1:
        raise FedloraError(
            f"scenario {base.name} shares heads by {base.head.share}, draws "
            f"{base.federation.clients_per_round or 'all'} clients and accumulates "
            f"{base.train.accumulate}; parity needs head.share=step, all clients, accumulate 1"
        )
    if base.privacy.enabled:
        key = "epsilon" if base.privacy.epsilon is not None else "sigma"
        raise FedloraError(
            f"privacy.{key} is {getattr(base.privacy, key)}, and plain PEFT adds no noise; parity "
            f"needs privacy.{key}=none"
        )
    _check_undivided(base)
    with looking():
        from fedlora.check import check_scenario

        check_scenario(base)
    check_new_file(json_, "--json", overwrite=overwrite)
    trials = [Trial(seed) for seed in range(seeds)]
    folder = StudyFolder(
        out or dated_folder(Path("parity")),
        "a study of parity",
        (),
        base,
        lambda line: line["seed"],
        overwrite=overwrite,
    )
    with folder.held():
        run_missing(
            folder.results,
            trials,
            run_trial,
            lambda _: (base,),
            python_path=base.python_path,
            workers=workers,
            title="runs, split and unsplit",
        )
    rows = [folder.results.records[trial.seed] for trial in trials]
    _print(base.name, rows)
    typer.echo(f"runs: {folder.path}")
    if json_ is not None:
        replace_file(json_, json_line(rows, indent=2))


def _print(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title=f"{name}: split and unsplit on the same batches")
    for column in rows[0]:
        words = column.split("_")
        table.add_column(" ".join(words), justify="right", min_width=max(map(len, words)))
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    averages = [
        f"{mean(row[c] for row in rows):.4g}" if rows[0][c] is not None else ""
        for c in list(rows[0])[1:]
    ]
    table.add_section()
    table.add_row("mean", *averages)
    Console().print(table)


def _check_undivided(base: Scenario) -> None:
    """Refuse what trains, or is measured, otherwise than one undivided model in plain PEFT.

    Codecs are none of it: what they cost is what a comparison shows.

    Raises
    ------
    FedloraError
        When the scenario has such a key, with its value and the one that parity needs.
    """
    from fedlora.tasks import head_trains

    r_max, options, robust = base.lora.r_max, base.ranks.options, base.robust
    uniform = base.ranks.strategy == "uniform" and options.get("r", r_max) == r_max
    plain = "plain PEFT has"
    found: dict[str, tuple[bool, object, str, object]] = {
        "ranks.strategy": (
            not uniform,
            f"{base.ranks.strategy}" + (f" of rank {options['r']}" if "r" in options else ""),
            f"{plain} lora.r_max {r_max} everywhere",
            "uniform, with no options",
        ),
        "train.embedding": (base.train.embedding, "true", f"{plain} it frozen", "false"),
        "head.train": (
            base.task.kind == "causal_lm" and head_trains(base),
            base.head.train,
            f"{plain} a language model's head frozen",
            "no",
        ),
        "lora.dropout": (base.lora.dropout > 0, base.lora.dropout, f"{plain} masks of its own", 0),
        "robust.average": (robust.average != "mean", robust.average, f"{plain} the mean", "mean"),
        "robust.row_clip": (robust.row_clip > 0, robust.row_clip, f"{plain} no limit", 0),
        "robust.head_clip": (robust.head_clip > 0, robust.head_clip, f"{plain} no limit", 0),
        "channel.schedule.scheduler": (
            base.channel.schedule.scheduler != "all",
            base.channel.schedule.scheduler,
            f"{plain} the rows of all clients in every step",
            "all",
        ),
        "channel.deliver_every": (
            base.channel.deliver_every > 0,
            base.channel.deliver_every,
            "clients are evaluated with the adapter that reached them",
            0,
        ),
        "evaluate.patience": (
            base.evaluate.patience > 0,
            base.evaluate.patience,
            "the split run may end before the other",
            0,
        ),
    }
    for key, (wrong, value, why, needed) in found.items():
        if wrong:
            raise FedloraError(f"{key} is {value}, and {why}; parity needs {key}={needed}")
