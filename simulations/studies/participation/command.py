"""``fedlora participation``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlora.errors import FedloraError
from simulations.options import (
    OverwriteOption,
    SetOption,
    WorkersOption,
    open_scenario,
    read_numbers,
    require_losses,
)

if TYPE_CHECKING:
    from fedlora.report import MetricText

_FILES = ("participation.csv", "participants.png", "trade-off.png")


def participation(
    scenario: Annotated[
        str, typer.Argument(help="A shipped scenario, or the path of a TOML file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the study; finished runs are kept.")],
    participants: Annotated[
        str, typer.Option(help="Numbers of clients a round, drawn at random.")
    ] = "1,2,4,8",
    trade_offs: Annotated[
        str, typer.Option(help="Weights V of the online scheme, in square seconds.")
    ] = "1,10,100,1000",
    mean_delay: Annotated[
        float, typer.Option(min=1e-6, help="Limit on the mean delay of a round, in seconds.")
    ] = 10.0,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Seeds, counted up from the scenario's.")
    ] = 3,
    workers: WorkersOption = 0,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Show what more participants a round buy, beside the trend that theory predicts.

    Clients are drawn at random, or chosen with their bandwidth by the online scheme of Wang et al.
    with its trade-off V. Writes `participation.csv` and two plots.
    """
    from rich.console import Console

    from fedlora.report import MetricText
    from simulations.studies.kit import StudyFolder, run_missing, write_table
    from simulations.studies.participation.study import Setting, run_setting

    counts = [
        int(n)
        for n in read_numbers(
            *("--participants", participants, "positive whole numbers"),
            fits=lambda value: 0 < value < 1e9 and value == int(value),
        )
    ]
    weights = read_numbers("--trade-offs", trade_offs)
    base = open_scenario(scenario, set_)
    require_losses(base, "the trend is that of the held-out loss")
    too_many = [n for n in counts if n > base.federation.clients]
    if too_many:
        raise FedloraError(
            f"--participants {too_many[0]} exceeds federation.clients {base.federation.clients}; "
            "lower it or add clients"
        )
    each = [(n, 0.0) for n in counts] + [(0, weight) for weight in weights]
    settings = [
        Setting(n, weight, mean_delay, base.seed + offset)
        for n, weight in each
        for offset in range(seeds)
    ]
    folder = StudyFolder(
        out,
        "a study of participation",
        _FILES,
        base,
        lambda line: Setting(**line["setting"]),
        overwrite=overwrite,
        marks=("participation.csv",),
    )
    with folder.held():
        run_missing(
            folder.results,
            settings,
            run_setting,
            lambda _: (base,),
            python_path=base.python_path,
            workers=workers,
            title="runs",
        )
        rows = [row for one in settings for row in folder.results.records[one]["rows"]]
        write_table(out / "participation.csv", list(rows[0]), rows)
        name = folder.results.records[settings[0]].get("metric_name", "metric")
    _draw(out, rows, base.federation.clients, MetricText(name), Console())


def _draw(
    out: Path, rows: Sequence[Mapping[str, Any]], clients: int, told: MetricText, console: Any
) -> None:
    import numpy as np
    from rich.table import Table

    from simulations.studies.participation.plots import draw_participants, draw_trade_off
    from simulations.studies.participation.trend import fit_trend

    curves = {
        n: np.array(
            [
                [row["loss"] for row in rows if row["participants"] == n and row["seed"] == seed]
                for seed in sorted({row["seed"] for row in rows})
            ]
        )
        for n in sorted({row["participants"] for row in rows} - {0})
    }
    trend = fit_trend({n: losses.mean(axis=0) for n, losses in curves.items()}, clients)
    draw_participants(out / "participants.png", curves, trend, told.loss)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name = f"n = {row['participants']}" if row["participants"] else f"V = {row['trade_off']:g}"
        groups.setdefault(name, []).append(row)
    draw_trade_off(out / "trade-off.png", groups, told.loss)
    table = Table(title="Mean over seeds")
    headings = ("participants", "mean", "delay, s", "loss at the end", told.axis, "air time, s")
    for heading in headings:
        table.add_column(heading, justify="right")
    last = max(row["round"] for row in rows)
    for name, own in groups.items():
        ends = [row for row in own if row["round"] == last]
        table.add_row(
            name,
            f"{np.mean([row['chosen'] for row in own]):.2f}",
            f"{np.mean([row['round_seconds'] for row in own]):.2f}",
            f"{np.mean([row['loss'] for row in ends]):.3f}",
            f"{np.mean([told.value(row['metric']) for row in ends]):.3f}",
            f"{np.mean([row['air_seconds'] for row in ends]):.1f}",
        )
    console.print(table)
    console.print(
        f"trend: floor {trend.floor:.3f}, gap {trend.gap:.3f}, contraction "
        f"{trend.contraction:.3f}, spread {trend.spread:.3f}{told.loss.removeprefix('loss in')}"
    )
    console.print(f"table and plots: {out}", markup=False, highlight=False, soft_wrap=True)
