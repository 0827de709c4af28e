"""``fedlora utility``: what a scenario's accuracy is over epsilon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlora.errors import FedloraError
from simulations.options import (
    OverwriteOption,
    SetOption,
    WorkersOption,
    looking,
    open_scenario,
    read_numbers,
    require_held_out,
)
from simulations.studies.utility.trial import (
    NO_NOISE,
    Mechanism,
    Row,
    plan,
    run_trial,
    utility_folder,
)


def utility(
    scenario: Annotated[str, typer.Argument(help="Scenario under privacy.")] = "quickstart-private",
    epsilon: Annotated[str, typer.Option(help="Budgets, separated by commas.")] = "1,2,4,8,16",
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            help="A release (logits, row_space, full), or NAME:key=value;key=value; repeat it."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs each, from the scenario's seed.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder; a study that is there is taken up.")] = Path(
        "utility"
    ),
    limit: Annotated[int, typer.Option(min=0, help="Run so many trials, then stop; 0: all.")] = 0,
    workers: WorkersOption = 0,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train over epsilon with each mechanism and without noise, several seeds each.

    Writes `utility.csv` and `utility.png`, and prints means and standard
    deviations. The noise is drawn from the operating system, so a repetition
    differs within these.
    """
    from simulations.studies.kit import run_missing, write_table
    from simulations.studies.utility.plot import draw

    mechanisms = [Mechanism.parse(text) for text in mechanism or ["logits"]]
    epsilons = read_numbers("--epsilon", epsilon, example="1,4,8")
    base = open_scenario(scenario, set_, check=False, texts="fedlora utility")
    if not base.privacy.enabled:
        raise FedloraError(
            f"scenario {base.name} has no noise; set privacy.epsilon, or name one that has"
        )
    require_held_out(base, "mechanisms are compared by the held-out metric")
    trials = plan(mechanisms, epsilons, range(base.seed, base.seed + seeds))
    for trial in trials:
        trial.scenario(base)
    with looking():
        from fedlora.check import check_scenario

        check_scenario(base)
    folder = utility_folder(out, base, overwrite=overwrite)
    with folder.held():
        run_missing(
            folder.results,
            folder.results.missing(trials)[: limit or None],
            run_trial,
            lambda _: (base,),
            python_path=base.python_path,
            workers=workers,
        )
        every = sorted(map(Row.of, folder.results.records.values()), key=lambda row: row.key)
        columns = [field.name for field in fields(Row)]
        write_table(out / "utility.csv", columns, map(asdict, every))
    wanted = {trial.key for trial in trials}
    rows = [row for row in every if row.key in wanted]
    if rows:
        draw(rows, out / "utility.png", base.name)
        _print(base.name, rows)
    typer.echo(f"table and plot: {out}")


def _print(name: str, rows: Sequence[Row]) -> None:
    groups: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        groups.setdefault((row.mechanism, row.epsilon), []).append(row.metric)
    clean = groups.get((NO_NOISE, float("inf")), [])
    table = Table(title=f"{name}: metric over epsilon")
    for column in ("mechanism", "epsilon", "runs", "mean", "std", "below no noise"):
        table.add_column(column, justify="left" if column == "mechanism" else "right")
    for (mechanism, epsilon), metrics in sorted(groups.items()):
        table.add_row(
            mechanism,
            "" if mechanism == NO_NOISE else f"{epsilon:g}",
            str(len(metrics)),
            f"{mean(metrics):.3f}",
            f"{stdev(metrics):.3f}" if len(metrics) > 1 else "",
            f"{mean(clean) - mean(metrics):+.3f}" if clean else "",
        )
    Console().print(table)
