"""``fedlora participation``."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlora.errors import FedloraError
from fedlora.storage.outputs import FolderKind
from simulations.options import OverwriteOption, SetOption, open_scenario

if TYPE_CHECKING:
    from fedlora.config import Scenario
    from simulations.studies.participation.study import Setting

_FILES = ("participation.csv", "participants.png", "trade-off.png")
_STUDY = FolderKind("study of participation", ("participation.csv",), _FILES)


def participation(
    scenario: Annotated[
        str, typer.Argument(help="A shipped scenario, or the path of a TOML file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the table and the plots.")],
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
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Show what more participants a round buy, beside the trend that theory predicts.

    Clients are drawn at random, or chosen with their bandwidth by the online scheme of Wang et al.
    with its trade-off V. Writes `participation.csv` and two plots.
    """
    from rich.console import Console

    from simulations.studies.participation.study import Setting

    base = open_scenario(scenario, set_)
    counts = [int(n) for n in _numbers("--participants", participants, whole=True)]
    too_many = [n for n in counts if n > base.federation.clients]
    if too_many:
        raise FedloraError(
            f"--participants {too_many[0]} exceeds federation.clients {base.federation.clients}; "
            "lower it or add clients"
        )
    weights = _numbers("--trade-offs", trade_offs)
    each = [(n, 0.0) for n in counts] + [(0, weight) for weight in weights]
    settings = [
        Setting(n, weight, mean_delay, base.seed + offset)
        for n, weight in each
        for offset in range(seeds)
    ]
    _STUDY.check_free(out, overwrite=overwrite, option="--out")
    out.mkdir(parents=True, exist_ok=True)
    rows = _run(base, settings, workers)
    _STUDY.clear(out)
    _write(out / "participation.csv", rows)
    _draw(out, rows, base.federation.clients, Console())


def _numbers(option: str, text: str, *, whole: bool = False) -> list[float]:
    """Read a list of positive numbers, each once."""
    found: list[float] = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = float("nan")
        if not 0 < value < 1e9 or (whole and value != int(value)) or value in found:
            kind = "whole numbers" if whole else "numbers"
            raise FedloraError(
                f"{option} is {text!r}; write different positive {kind}, such as 1,2,4"
            )
        found.append(value)
    return found


def _run(base: Scenario, settings: Sequence[Setting], workers: int) -> list[dict[str, Any]]:
    from rich.progress import track

    from simulations.studies.participation.study import run_setting
    from simulations.studies.workers import worker_pool

    done: dict[Setting, list[dict[str, Any]]] = {}
    with worker_pool(workers) as pool:
        futures = {pool.submit(run_setting, base, setting): setting for setting in settings}
        for future in track(as_completed(futures), "runs", total=len(futures)):
            done[futures[future]] = future.result()
    return [row for setting in settings for row in done[setting]]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _draw(out: Path, rows: Sequence[Mapping[str, Any]], clients: int, console: Any) -> None:
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
    draw_participants(out / "participants.png", curves, trend)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name = f"n = {row['participants']}" if row["participants"] else f"V = {row['trade_off']:g}"
        groups.setdefault(name, []).append(row)
    draw_trade_off(out / "trade-off.png", groups)
    table = Table(title="Mean over seeds")
    for heading in ("participants", "mean", "delay, s", "loss at the end", "metric", "air time, s"):
        table.add_column(heading, justify="right")
    last = max(row["round"] for row in rows)
    for name, own in groups.items():
        ends = [row for row in own if row["round"] == last]
        table.add_row(
            name,
            f"{np.mean([row['chosen'] for row in own]):.2f}",
            f"{np.mean([row['round_seconds'] for row in own]):.2f}",
            *(f"{np.mean([row[key] for row in ends]):.3f}" for key in ("loss", "metric")),
            f"{np.mean([row['air_seconds'] for row in ends]):.1f}",
        )
    console.print(table)
    console.print(
        f"trend: floor {trend.floor:.3f}, gap {trend.gap:.3f}, contraction "
        f"{trend.contraction:.3f}, spread {trend.spread:.3f} nats"
    )
    console.print(f"table and plots: {out}")
