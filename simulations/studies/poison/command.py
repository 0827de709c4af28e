"""``fedlora poison``: what hostile clients do to a run, under each average."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlora.errors import FedloraError
from simulations.options import (
    SetOption,
    WorkersOption,
    looking,
    open_scenario,
    require_plain_ends,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def poison(
    scenario: Annotated[
        str, typer.Argument(help="A shipped scenario, or the path of a TOML file.")
    ] = "quickstart",
    average: Annotated[
        list[str] | None, typer.Option(help="A `robust.average`; repeat it. Default: all.")
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="none, huge, flipped, quiet or random; repeat it. Default: all."),
    ] = None,
    hostile: Annotated[
        int, typer.Option(min=1, help="Hostile clients: the first ones, and `robust.hostile`.")
    ] = 1,
    out: Annotated[
        Path, typer.Option(help="File of results, one JSON object a line; it is added to.")
    ] = Path("poison.jsonl"),
    workers: WorkersOption = 0,
    set_: SetOption = None,
) -> None:
    """Train with hostile clients, under each attack and with each average.

    A hostile client answers every step with a gradient that is turned round,
    10,000 times (huge), 10 times (flipped) or once (quiet) as long, or with
    noise ten times as long (random). Runs that the file holds are not repeated.
    """
    from fedlora.config import scenario_to_toml
    from fedlora.storage import explained, held_file
    from simulations.studies.kit import Results, run_missing
    from simulations.studies.poison.attackers import POISONS
    from simulations.studies.poison.trial import AVERAGES, Trial, run_trial

    results = Results(out, lambda line: Trial(**line["trial"]), "fedlora poison")
    overrides = ["evaluate.baseline=false", *(set_ or [])]
    base = open_scenario(scenario, overrides, check=False, texts="fedlora poison")
    require_plain_ends(base, "fedlora poison")
    attacks = attack or ["none", *POISONS]
    if unknown := set(attacks) - {"none", *POISONS}:
        raise FedloraError(
            f"no attack is called {unknown.pop()!r}; known: none, {', '.join(POISONS)}"
        )
    trials = [
        Trial(kind, wanted, hostile, scenario_to_toml(base))
        for kind in average or AVERAGES
        for wanted in attacks
    ]
    with looking():
        from fedlora.check import check_scenario

        for trial in {trial.average: trial for trial in trials}.values():
            check_scenario(trial.scenario())
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with held_file(out.with_name(f".{out.name}.lock"), f"a run of trials is still adding to {out}"):
        results.read()
        run_missing(
            results,
            trials,
            run_trial,
            lambda _: (),
            python_path=base.python_path,
            workers=workers,
            title="runs",
        )
    _show(base.name, [results.records[trial] for trial in trials], attacks)
    typer.echo(f"results: {out}")


def _show(name: str, results: Sequence[Mapping[str, Any]], attacks: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fedlora.report import number_text

    table = Table("average", *attacks, title=f"{name}: {results[0]['metric_name']}")
    rows: dict[str, dict[str, str]] = {}
    for result in results:
        trial = result["trial"]
        rows.setdefault(trial["average"], {})[trial["attack"]] = number_text(result["metric"])
    for average, cells in rows.items():
        table.add_row(average, *(cells[attack] for attack in attacks))
    Console().print(table)
