"""``fedlora check``: what a scenario comes to, and all that is wrong with it, before it runs."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.check import devices_bring_data
from fedlora.config import Scenario
from fedlora.errors import printable
from fedlora.preview import Load, RowView, Sizes, find_faults, predict_sizes, read_all, view_rows
from fedlora.scenarios import scenario_path
from fedlora.split import Checkpoint, model_folder
from fedlora.storage import check_new_file, replace_file

_CLASSES = 6  # columns of the table
_TOKENS = 400  # of a row that is shown
_NAME = 80  # characters of a class
_NOT_IN_A_PAIR = re.compile(r'[\s"\\]')  # settings go to Flower in one text, between quotes


def show_check(
    name: str, overrides: Sequence[str], json_file: Path | None, *, overwrite: bool = False
) -> bool:
    """Print what a scenario comes to, or every fault of it; tell whether it can be run.

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

    Raises
    ------
    FedloraError
        When there is no such scenario, or the file is there.
    """
    if json_file is not None:
        check_new_file(json_file, "--json", overwrite=overwrite)
    console = Console()
    with console.status("checking the scenario, its model and its data"):
        scenario, faults = all_faults(name, overrides)
        rows, sizes = (None, None) if faults else figures(scenario)
    if json_file is not None:
        found = _as_json(scenario, faults, rows, sizes)
        replace_file(json_file, f"{json.dumps(found, indent=1)}\n".encode())
    if faults:
        print_faults(console, scenario, faults)
        return False
    if rows is not None:
        _print_rows(console, scenario, rows)
    else:
        console.print(Text(_unseen(scenario)), soft_wrap=True)
    if sizes is not None:
        _print_sizes(console, scenario, sizes)
    command = _command(scenario, name, overrides)
    console.print(Text(f"{scenario.name} can be run: {command}"), soft_wrap=True)
    return True


def _command(scenario: Scenario, name: str, overrides: Sequence[str]) -> str:
    """Return what runs a scenario: a simulation, or a server where devices have what it needs."""
    if not devices_bring_data(scenario) and scenario.channel.model != "measured":
        settings = [word for override in overrides for word in ("--set", override)]
        return shlex.join(["fedlora", "run", name, *settings])
    if any(_NOT_IN_A_PAIR.search(override) for override in overrides):
        return "flwr run, with what --set says written into the scenario (docs/deploy.md)"
    path = scenario_path(name)
    pairs = {"scenario": str(path.resolve()), "set": " ".join(overrides)}
    config = " ".join(f'{key}="{value}"' for key, value in pairs.items() if value)
    return shlex.join(["flwr", "run", ".", "fedlora", "--stream", "--run-config", config])


def all_faults(name: str, overrides: Sequence[str]) -> tuple[Scenario, list[str]]:
    """Return a scenario, and all that is wrong with it."""
    scenario, faults = read_all(name, overrides)
    return scenario, faults + [f for f in find_faults(scenario) if f not in faults]


def print_faults(console: Console, scenario: Scenario, faults: Sequence[str]) -> None:
    """Print every fault of a scenario that cannot be run."""
    for number, fault in enumerate(faults, 1):
        console.print(Text(f"{number}. {fault}"), soft_wrap=True)
    many = "fault" if len(faults) == 1 else "faults"
    console.print(Text(f"{scenario.name} has {len(faults)} {many}; nothing was started"))


def figures(scenario: Scenario) -> tuple[RowView | None, Sizes]:
    """Return the rows of a scenario, None where they are not here, and its sizes."""
    checkpoint = Checkpoint(model_folder(scenario.model.path))
    rows = view_rows(scenario, checkpoint)
    longest = scenario.task.max_length
    classes = len(scenario.task.labels) if rows is None else len(rows.labels)
    load = Load(longest, longest, 0, 0) if rows is None else rows.load(longest)
    return rows, predict_sizes(scenario, checkpoint, load, classes)


def _unseen(scenario: Scenario) -> str:
    """Return why no row was looked at, and what the sizes are of."""
    why = f"data.train is {scenario.data.train}, which is read when a run starts"
    if devices_bring_data(scenario):
        why = (
            "data.train is not named, so devices bring data of their own, at which fedlora doctor "
            "--node-config looks on each"
        )
    longest = scenario.task.max_length
    return f"{why}; no row was looked at, and sizes are of rows of task.max_length {longest} tokens"


def _print_rows(console: Console, scenario: Scenario, rows: RowView) -> None:
    names = sorted({name for client in rows.clients for name in client.classes})
    few = names if len(names) <= _CLASSES else []
    data = scenario.data
    console.print(Text(f"data: {', '.join(filter(None, (data.train, data.test)))}"), soft_wrap=True)
    table = Table(title="rows")
    for heading in (
        "client",
        "train",
        "held out",
        *few,
        *([] if few or not names else ["classes"]),
    ):
        table.add_column(Text(printable(heading, _NAME)), justify="right")
    for number, client in enumerate(rows.clients):
        counts = [str(client.classes.get(name, 0)) for name in few]
        if names and not few:
            counts = [f"{len(client.classes)} of {len(names)}"]
        table.add_row(str(number), str(client.train), str(client.held_out), *counts)
    console.print(table)
    least, low, median, high, longest = rows.quartiles()
    console.print(
        Text(
            f"tokens a row: {least:g} to {longest:g}, quartiles {low:g}, {median:g}, {high:g}; "
            f"task.max_length {scenario.task.max_length}"
        ),
        soft_wrap=True,
    )
    for warning in rows.warnings or ["no row is cut, and none is left out"]:
        console.print(Text(warning), soft_wrap=True)
    for row in rows.shown:
        console.print(_marked(row.row, row.target, row.pieces()), soft_wrap=True)
    if any(any(row.learnt) for row in rows.shown):
        console.print(Text("(between [ and ]: what counts for the loss)"))


def _marked(number: int, target: str, pieces: Sequence[tuple[bool, Sequence[str]]]) -> Text:
    """Return a row with its tokens apart, and marks around what is learnt."""
    named = f" ({printable(target, _NAME)})" if target else ""
    text, left = Text(f"row {number}{named}: ", style=""), _TOKENS
    for learnt, tokens in pieces:
        words = "|".join(json.dumps(token, ensure_ascii=False)[1:-1] for token in tokens[:left])
        text.append(f"[{words}]" if learnt else words, style="bold green" if learnt else "")
        left -= len(tokens)
        if left <= 0:
            return text.append(" ...")
    return text


def _print_sizes(console: Console, scenario: Scenario, sizes: Sizes) -> None:
    bound = "at most " if scenario.privacy.enabled else ""
    up, down = (f"{bound}{size / 1e6:.3f} MB" for size in (sizes.up, sizes.down))
    server = {
        "frozen weights": sizes.server_weights,
        "adapters with their optimiser": sizes.server_adapters,
        "a step of all clients": sizes.server_activations,
        "kept activations": sizes.server_kept,
    }
    device = {"its ends of the model": sizes.device_weights, "a step": sizes.device_step}
    if sizes.server_levels:
        server["levels of representations"] = sizes.server_levels
        device["levels of representations"] = sizes.device_levels
    again = f", {sizes.up_again / 1e6:.3f} once the server has kept the rows"
    again = again if sizes.up_again < sizes.up else ""
    console.print(Text(f"a step and client: {up} up{again}; {down} down"), soft_wrap=True)
    for who, total, parts in (
        ("the server", sizes.server, server),
        ("a device", sizes.device, device),
    ):
        listed = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in parts.items())
        told = f"memory of {who}, beside Python and torch: about {total / 1e6:.0f} MB ({listed})"
        console.print(Text(told), soft_wrap=True)


def _as_json(
    scenario: Scenario, faults: Sequence[str], rows: RowView | None, sizes: Sizes | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "scenario": scenario.name,
        "devices_bring_data": devices_bring_data(scenario),
        "faults": list(faults),
    }
    if rows is not None:
        least, low, median, high, longest = rows.quartiles()
        found |= {
            "clients": [dataclasses.asdict(client) for client in rows.clients],
            "tokens": {
                "least": least,
                "quartiles": [low, median, high],
                "longest": longest,
                "max_length": scenario.task.max_length,
            },
            "records": {
                path: {
                    "records": tally.records,
                    "cut": tally.cut,
                    "left_out": tally.records - tally.used,
                }
                for path, tally in rows.tallies.items()
            },
            "rows": [dataclasses.asdict(row) for row in rows.shown],
        }
    if sizes is not None:
        found["bytes"] = dataclasses.asdict(sizes)
    return found
