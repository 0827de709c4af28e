"""``fedlora new``: the folder of an app with plug-ins of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from fedlora.scaffold.write import AppNames, write_app


def new_app(folder: Path, parts: Sequence[str] = ()) -> None:
    """Write a new app and say how to go on.

    Parameters
    ----------
    folder
        Where to write; its last part names the app.
    parts
        Which of ``fedlora.scaffold.write.PARTS`` it gets beside its strategy.

    Raises
    ------
    FedloraError
        When the name cannot be used or the folder is not free.
    """
    path = folder.expanduser().resolve()
    names = AppNames.of(path.name)
    for file in write_app(path, names, parts):
        typer.echo(file.relative_to(path.parent))
    typer.echo(
        f"\nChange {names.module}/{[*parts, 'strategy'][0]}.py, then:\n"
        f"  cd {folder}\n"
        + ("  python model.py\n" if "family" in parts else "")
        + "  python check.py\n"
        "  fedlora run scenario.toml --set train.rounds=2"
    )
