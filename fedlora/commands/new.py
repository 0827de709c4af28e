"""``fedlora new``: the folder of an app with plug-ins of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def new(
    folder: Annotated[
        Path, typer.Argument(metavar="NAME", help="Folder to write; its last part names the app.")
    ],
    channel: Annotated[
        bool, typer.Option("--channel", help="Write a channel model of your own, too.")
    ] = False,
    scheduler: Annotated[
        bool, typer.Option("--scheduler", help="Write a scheduler of your own, too.")
    ] = False,
    predictor: Annotated[
        bool, typer.Option("--predictor", help="Write a channel predictor of your own, too.")
    ] = False,
    mechanism: Annotated[
        bool, typer.Option("--mechanism", help="Write a privacy mechanism of your own, too.")
    ] = False,
    codec: Annotated[bool, typer.Option("--codec", help="Write a codec of your own, too.")] = False,
    task: Annotated[
        bool, typer.Option("--task", help="Write a task without texts of your own, too.")
    ] = False,
    average: Annotated[
        bool, typer.Option("--average", help="Write a robust average of your own, too.")
    ] = False,
    family: Annotated[
        bool, typer.Option("--family", help="Write a model family of your own, too.")
    ] = False,
) -> None:
    """Begin a rank strategy of your own: a Flower app folder that runs as it is.

    Its scenario works with `fedlora run`, `fedlora compare` and `flwr run .`.
    """
    wanted = {
        "channel": channel,
        "scheduler": scheduler,
        "predictor": predictor,
        "mechanism": mechanism,
        "codec": codec,
        "task": task,
        "average": average,
        "family": family,
    }
    _write(folder, [name for name, asked in wanted.items() if asked])


def _write(folder: Path, parts: Sequence[str]) -> None:
    """Write a new app with some of ``fedlora.scaffold.write.PARTS``, and say how to go on."""
    from fedlora.scaffold.write import AppNames, write_app

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
