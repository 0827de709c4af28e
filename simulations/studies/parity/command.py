"""``fedlora parity``: train a scenario split and unsplit, and compare."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fedlora.errors import FedloraError
from fedlora.storage.files import json_line, replace_file
from fedlora.storage.outputs import check_new_file
from simulations.in_process import Record, connect
from simulations.options import OverwriteOption, SetOption, open_scenario
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


def parity(
    scenario: Annotated[str, typer.Argument(help="Scenario with all clients in every round.")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs, with seeds from 0.")] = 1,
    set_: SetOption = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a scenario split and unsplit (plain PEFT) on the same batches, and compare."""
    base = open_scenario(scenario, set_, check=False, texts="fedlora parity")
    trains_head = base.task.kind == "classification" and base.head.share != "step"
    if trains_head or base.federation.clients_per_round or base.train.accumulate > 1:
        raise FedloraError(
            f"scenario {base.name} shares heads by {base.head.share}, draws "
            f"{base.federation.clients_per_round or 'all'} clients and accumulates "
            f"{base.train.accumulate}; parity needs head.share=step, all clients, accumulate 1"
        )
    check_new_file(json_, "--json", overwrite=overwrite)
    rows = [
        _compare(dataclasses.replace(base, seed=seed))
        for seed in track(range(seeds), "runs, split and unsplit", console=Console(stderr=True))
    ]
    _print(base.name, rows)
    if json_ is not None:
        replace_file(json_, json_line(rows, indent=2))


def _compare(scenario: Any) -> dict[str, Any]:
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


def _print(name: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{name}: split and unsplit on the same batches")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right", min_width=7)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    averages = [
        f"{mean(row[c] for row in rows):.4g}" if rows[0][c] is not None else ""
        for c in list(rows[0])[1:]
    ]
    table.add_section()
    table.add_row("mean", *averages)
    Console().print(table)
