"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScenarioArgument = Annotated[
    str,
    typer.Argument(help="A shipped scenario (`fedlora scenarios`), or the path of a TOML file."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a scenario key, such as `train.rounds=3`."
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Run folder (default: `runs/NAME-TIME`).")
]
ClientOption = Annotated[
    str | None,
    typer.Option(help="The adapter that this client has: what was last delivered in time."),
]
RankOption = Annotated[
    int | None, typer.Option(min=1, help="Use the first so many components everywhere.")
]

OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what an earlier call has written there."),
]

FrontOption = Annotated[
    int, typer.Option(min=0, help="`model.client_front` of the scenario to come.")
]
BackOption = Annotated[
    int, typer.Option(min=0, help="`model.client_back` of the scenario to come.")
]
TaskOption = Annotated[
    str, typer.Option(help="`task.kind` to come; of one without texts, no vocabulary is taken.")
]
