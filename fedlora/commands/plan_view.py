"""What ``fedlora plan`` shows: a run on the air and in the server's memory, before it starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.check import devices_bring_data
from fedlora.commands.check import all_faults, figures, print_faults
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.planning import Forecast, Rehearsal, forecast
from fedlora.preview import Sizes
from fedlora.registry import resolve
from fedlora.report import bits_column, bits_text, cut_bits, energy_text, plural, seconds_text
from fedlora.split import Checkpoint, model_folder
from fedlora.storage import check_new_file, replace_file

_CLIENTS = 32  # rows of the table
_IN_PROCESS = "in-process"  # which computes with clients, too


def show_plan(
    name: str,
    overrides: Sequence[str],
    json_file: Path | None,
    *,
    overwrite: bool = False,
    rehearse: int = 0,
) -> bool:
    """Print what a run of a scenario will take, or every fault of it; tell whether it can be run.

    Parameters
    ----------
    name
        Name or path of a scenario.
    overrides
        ``section.key=value`` assignments.
    json_file
        File for all figures, or None.
    overwrite
        Whether an earlier file is replaced.
    rehearse
        Rounds that are trained first; see ``plan``.

    Raises
    ------
    FedloraError
        When there is no such scenario, the file is there, or its data are not on this machine.
    """
    if json_file is not None:
        check_new_file(json_file, "--json", overwrite=overwrite)
    console = Console()
    doing = f"rehearsing {plural(rehearse, 'round')}" if rehearse else "walking through the rounds"
    with console.status(doing):
        scenario, faults = all_faults(name, overrides)
        found = None if faults else plan(scenario, rehearse)
    if found is None:
        print_faults(console, scenario, faults)
        return False
    planned, sizes = found
    if json_file is not None:
        content = {"scenario": scenario.name, **dataclasses.asdict(planned)}
        content["server_bytes"] = _server_bytes(planned, sizes)
        replace_file(json_file, f"{json.dumps(content, indent=1)}\n".encode())
    _print(console, scenario, planned, sizes)
    return True


def plan(scenario: Scenario, rehearse: int = 0) -> tuple[Forecast, Sizes]:
    """Return what a scenario that can be run will send, and its sizes.

    Parameters
    ----------
    scenario
        The run.
    rehearse
        Rounds that are trained first, to see what codecs make of what they write; 0 for none.

    Raises
    ------
    FedloraError
        When its rows are not here, or too few rounds are rehearsed.
    """
    rows, sizes = figures(scenario)
    if rows is None and devices_bring_data(scenario):
        raise FedloraError(
            "data.train is not named, so devices bring data of their own, and a plan walks through "
            "rows; name a file like theirs with --set data.train=FILE"
        )
    if rows is None:
        raise FedloraError(
            f"data.train is {scenario.data.train}, whose rows are read when a run starts; save "
            "them to a file to plan with them"
        )
    checkpoint = Checkpoint(model_folder(scenario.model.path))
    rehearsal = resolve("rehearsals", _IN_PROCESS, Rehearsal)() if rehearse else None
    rounds = min(rehearse, scenario.train.rounds)
    return forecast(scenario, checkpoint, rows, rehearsal, rounds), sizes


def _print(console: Console, scenario: Scenario, planned: Forecast, sizes: Sizes) -> None:
    totals, clients = planned.totals, list(planned.clients.items())[:_CLIENTS]
    tables = [*(own["bits"] for _, own in clients), totals["bits"]]
    columns = [
        bits_column("up", [sum(bits["up"].values()) for bits in tables]),
        bits_column("down", [sum(bits["down"].values()) for bits in tables]),
        bits_column("head of it", [sum(own["head"] for own in bits.values()) for bits in tables]),
        bits_column("adapters of it", [bits["down"]["adapter"] for bits in tables]),
    ]
    if totals["air_seconds"] > 0:
        seconds = [*(own["air_seconds"] for _, own in clients), totals["client_seconds"]]
        joules = [*(own["energy_joules"] for _, own in clients), totals["energy_joules"]]
        columns.append(("on the air", [seconds_text(own) for own in seconds]))
        columns.append(("energy", [energy_text(own) for own in joules]))
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{scenario.name}, {plural(scenario.train.rounds, 'round')}",
        title_justify="left",
    )
    for heading in ("client", *(heading for heading, _ in columns)):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, (client, _) in enumerate(clients):
        table.add_row(client, *(cells[place] for _, cells in columns))
    if len(planned.clients) > _CLIENTS:
        table.add_row(f"and {len(planned.clients) - _CLIENTS} more")
    table.add_section()
    table.add_row("all", *(cells[-1] for _, cells in columns))
    console.print(table)
    for line in _lines(planned, sizes):
        console.print(Text(line), soft_wrap=True)


def _server_bytes(planned: Forecast, sizes: Sizes) -> int:
    """Return what the server holds, with the levels that it has at the end of this run."""
    return sizes.server - sizes.server_levels + planned.remembered_bytes


def _lines(planned: Forecast, sizes: Sizes) -> list[str]:
    totals, lines = planned.totals, []
    for way, kinds in totals["bits"].items():
        listed = ", ".join(f"{kind} {bits_text(bits)}" for kind, bits in kinds.items() if bits)
        lines.append(f"{way}: {listed or 'nothing'}")
    if planned.samples:
        bits = cut_bits(totals["bits"])
        lines.append(
            f"bits a sample: {bits_text(bits / planned.samples)}, {bits / planned.raw_bits:.1%} of "
            "fp32 each way at every step; without adapters"
        )
    if totals["air_seconds"]:
        count = totals["late_deliveries"]
        late = f", {count} late {'delivery' if count == 1 else 'deliveries'}" * bool(count)
        slowest = seconds_text(totals["air_seconds"])
        lines.append(f"air time: {slowest}, modelled; slowest client, every round{late}")
    up, down = (bits_text(planned.evaluation[way]) for way in ("up", "down"))
    lines.append(f"evaluation, apart: {up} up, {down} down")
    held, levels = _server_bytes(planned, sizes), ""
    if planned.remembered_bytes:  # the clients hold the same, each its own
        levels = f" and levels of representations {planned.remembered_bytes / 1e6:.1f}"
    lines.append(
        f"memory of the server, beside Python and torch: about {held / 1e6:.0f} MB, of it kept "
        f"activations {planned.kept_bytes / 1e6:.0f}{levels}"
    )
    return lines + [f"note: {note}" for note in planned.notes]
