"""``fedlora new``: the folder of an app with plug-ins of one's own."""

from __future__ import annotations

from pathlib import Path

import typer

from fedlora.scaffold.write import AppNames, write_app


def new_app(folder: Path, *, channel: bool, mechanism: bool) -> None:
    """Write a new app and say how to go on.

    Parameters
    ----------
    folder
        Where to write; its last part names the app.
    channel
        Whether it gets a channel model of its own, too.
    mechanism
        Whether it gets a privacy mechanism of its own, too.

    Raises
    ------
    FedloraError
        When the name cannot be used or the folder is not free.
    """
    path = folder.expanduser().resolve()
    names = AppNames.of(path.name)
    for file in write_app(path, names, channel=channel, mechanism=mechanism):
        typer.echo(file.relative_to(path.parent))
    typer.echo(
        f"\nChange {names.module}/{'mechanism' if mechanism else 'strategy'}.py, then:\n"
        f"  cd {folder}\n"
        "  python check.py\n"
        "  fedlora run scenario.toml --set train.rounds=2"
    )
