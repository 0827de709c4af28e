"""``fedlora fuzz``: random scenarios, and what they are held to."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlora.storage import check_new_file, json_line, replace_file
from simulations.options import OverwriteOption
from simulations.progress import Bars

if TYPE_CHECKING:
    from simulations.fuzz.campaign import Campaign
    from simulations.fuzz.examine import Outcome

_FRESH = 1 << 31


def fuzz(
    scenario: Annotated[
        Path | None,
        typer.Argument(help="Hold this file alone to the oracles, as the smallest of a fault."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Random scenarios.")] = 20,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of the first; the others count up. Left out: fresh."),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    out: Annotated[
        Path, typer.Option(help="Where the smallest scenario of each fault goes.")
    ] = Path("fuzz"),
    overwrite: OverwriteOption = False,
) -> None:
    """Draw random scenarios; each must be refused before it trains, or run and be right.

    A run is repeated, stopped and taken up again, trained on the undivided model in plain PEFT, its
    bits are counted from shapes, its epsilon by dp-accounting, its exports loaded. Of each fault
    the smallest scenario that shows it is written. Exits with 1 where there are any.
    """
    check_new_file(json_, "--json", overwrite=overwrite)
    console = Console()
    if scenario is not None:
        raise typer.Exit(_examine_file(scenario, console))
    from simulations.fuzz.campaign import run_campaign

    first = secrets.randbelow(_FRESH) if seed is None else seed
    console.print(f"scenarios {first} to {first + trials - 1}", highlight=False)
    with (
        tempfile.TemporaryDirectory() as assets,
        Bars() as bar,
    ):
        task = bar.add_task("scenarios", total=trials)

        def told(number: int, found: Outcome) -> None:
            bar.advance(task)
            for fault in found.faults:
                bar.print(f"{number}: {fault}", highlight=False, markup=False)

        campaign = run_campaign(trials, first, Path(assets), out, told=told)
    console.print(_table(campaign))
    for fault in campaign.faults:
        text = f"{fault.number}: {'; '.join(fault.faults)}\n  fedlora fuzz {fault.scenario}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if json_ is not None:
        replace_file(json_, json_line(campaign.to_dict(), indent=1))
        console.print(f"Figures: {json_}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if campaign.faults else 0)


def _examine_file(scenario: Path, console: Console) -> int:
    """Hold one file to the oracles; return the status to exit with."""
    from simulations.fuzz.examine import examine, quietly

    with quietly(), tempfile.TemporaryDirectory() as place:
        found = examine(scenario, Path(place))
    console.print(f"{found.kind} ({found.seconds:.1f} s) {found.message}", highlight=False)
    for name, text in found.verdicts.items():
        console.print(f"  {name}: {text or 'ok'}", highlight=False, markup=False)
    return 1 if found.faults else 0


def _table(campaign: Campaign) -> Table:
    table = Table("what", "number", title=f"{campaign.trials} random scenarios")
    for kind, count in campaign.kinds.most_common():
        table.add_row(kind, str(count))
    table.add_section()
    for name, count in sorted(campaign.verdicts.items()):
        table.add_row(f"held to {name}", str(count))
    table.add_section()
    table.add_row("faults", str(len(campaign.faults)))
    return table
