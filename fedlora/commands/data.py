"""``fedlora data``: what shipped scenarios read beyond this package, and making it of originals."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from fedlora.commands.options import OverwriteOption
from fedlora.errors import FedloraError

if TYPE_CHECKING:
    from fedlora.config import Scenario
    from fedlora.sources import Source


def data(
    action: Annotated[
        str,
        typer.Argument(
            help="`list`: what there is, and whether it is here; `prepare`: make it of originals.",
            click_type=click.Choice(["list", "prepare"]),
        ),
    ] = "list",
    name: Annotated[
        str,
        typer.Argument(help="A data set, a model, or a scenario, whose data and model are meant."),
    ] = "",
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="Folder with the public originals as they come.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write (default: `$FEDLORA_SHARED`)."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Show what shipped scenarios read beyond this package, or make it of its public originals.

    Originals are known by their digests, wherever they lie below FOLDER; what is made is checked by
    digest, too. Nothing is downloaded; `docs/data.md` says where each comes from.
    """
    from fedlora.sources import prepare, sources

    place = _place(out)
    if action == "list":
        if name or from_:
            raise FedloraError("fedlora data list takes no name; fedlora data prepare NAME does")
        _list(sources().values(), place)
        return
    if not name or not from_:
        raise FedloraError(
            "write fedlora data prepare NAME --from FOLDER; fedlora data lists the names"
        )
    if place is None:
        raise FedloraError(
            "FEDLORA_SHARED is not set; set it to the folder that is to hold the data, or name one "
            "with --out"
        )
    for source in _asked(name):
        for target, original in prepare(source, from_, place, overwrite=overwrite):
            told = "is there already" if original is None else f"made of {original}"
            typer.echo(f"{target}: {told}, digest right")
    if place != _place(None):
        typer.echo(f"Scenarios find it with: export FEDLORA_SHARED={place.absolute()}")


def _place(out: Path | None) -> Path | None:
    if out is not None:
        return out
    named = os.environ.get("FEDLORA_SHARED")
    beside = Path("../shared")  # where scenarios look, too
    return Path(named) if named else beside if beside.is_dir() else None


def _asked(name: str) -> Sequence[Source]:
    """Return the sources that a name means: itself, or those that a scenario reads."""
    from fedlora.scenarios import find_scenario, scenario_names
    from fedlora.sources import find_source

    if name not in scenario_names():
        return [find_source(name)]
    found = _read_by(find_scenario(name))
    if not found:
        raise FedloraError(
            f"scenario {name} reads nothing from $FEDLORA_SHARED; there is nothing to prepare"
        )
    return found


def _read_by(scenario: Scenario) -> Sequence[Source]:
    from fedlora.sources import SHARED, sources

    paths = (scenario.data.train, scenario.data.test, scenario.model.path)
    named = [path.removeprefix(SHARED) for path in paths if path.startswith(SHARED)]
    return [
        source
        for source in sources().values()
        if any(
            file.path == n or file.path.startswith(n + "/") for file in source.files for n in named
        )
    ]


def _list(known: Collection[Source], place: Path | None) -> None:
    from fedlora.scenarios import find_scenario, scenario_names

    readers = {name: {s.name for s in _read_by(find_scenario(name))} for name in scenario_names()}
    for source in known:
        users = ", ".join(name for name, read in readers.items() if source.name in read)
        typer.echo(f"{source.name}: {source.what}")
        typer.echo(f"  from     {source.source}, {source.version}")
        typer.echo(f"  licence  {source.licence}")
        typer.echo(f"  used by  {users or 'no shipped scenario'}")
        for file in source.files:
            here = place is not None and (place / file.path).exists()
            state = "not here"
            if place is not None and here:
                right = file.is_at(place / file.path)
                state = "here, digest right" if right else "here with OTHER CONTENT"
            typer.echo(f"  file     {file.path} ({file.size:,} bytes): {state}")
    nowhere = "nowhere: FEDLORA_SHARED is not set, and the checkout has no ../shared beside it"
    typer.echo(f"Looked for {f'in {place.absolute()}' if place else nowhere}")
