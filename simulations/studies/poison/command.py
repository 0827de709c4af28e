"""``fedlora poison``: what hostile clients do to a run, under each average."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlora.errors import FedloraError
from simulations.options import SetOption, open_scenario

if TYPE_CHECKING:
    from simulations.studies.poison.trial import Trial


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
    set_: SetOption = None,
) -> None:
    """Train with hostile clients, under each attack and with each average.

    A hostile client answers every step with a gradient that is turned round,
    10,000 times (huge), 10 times (flipped) or once (quiet) as long, or with
    noise ten times as long (random). Runs that the file holds are not repeated.
    """
    from rich.console import Console
    from rich.progress import track

    from fedlora.check import check_scenario
    from fedlora.config import scenario_to_toml
    from fedlora.storage.files import append_line
    from simulations.studies.poison.attackers import POISONS
    from simulations.studies.poison.trial import AVERAGES, Trial, run_trial

    known = _known(out)
    overrides = ["evaluate.baseline=false", *(set_ or [])]
    base = open_scenario(scenario, overrides, check=False, texts="fedlora poison")
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
    for trial in trials:
        check_scenario(trial.scenario())
    missing = [trial for trial in trials if trial not in known]
    for trial in track(missing, "runs", console=Console(stderr=True)):
        known[trial] = run_trial(trial)
        append_line(out, known[trial], sync=False)
    _show(base.name, [known[trial] for trial in trials], attacks)


def _known(out: Path) -> dict[Trial, dict[str, Any]]:
    """Return the results that a file of results holds.

    Raises
    ------
    FedloraError
        When it holds anything else, to which nothing is added.
    """
    from fedlora.storage.files import read_lines
    from simulations.studies.poison.trial import Trial

    try:
        lines, _ = read_lines(out)
        if not lines and out.is_file() and out.stat().st_size:
            raise ValueError("no line of JSON")
        return {Trial(**line["trial"]): line for line in lines}
    except (LookupError, TypeError, ValueError):
        raise FedloraError(
            f"--out {out} holds something else than results of fedlora poison; name another file"
        ) from None


def _show(name: str, results: list[dict[str, Any]], attacks: list[str]) -> None:
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
