"""``fedlora plan``: what a run will take, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora.commands.options import OverwriteOption, ScenarioArgument, SetOption


def plan(
    scenario: ScenarioArgument = "quickstart",
    set_: SetOption = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here as well.")
    ] = None,
    overwrite: OverwriteOption = False,
    rehearse: Annotated[
        int,
        typer.Option(
            "--rehearse",
            metavar="ROUNDS",
            min=0,
            help="Train so many rounds first, to tell what codecs make of what they write.",
        ),
    ] = 0,
) -> None:
    """Predict what a run will take: bits, air time and energy by client, and server memory.

    Its rounds and batches are walked without a model, unless some are rehearsed. Status 2 where it
    cannot be run.
    """
    from fedlora.commands.plan_view import show_plan

    if not show_plan(scenario, set_ or [], json_, overwrite=overwrite, rehearse=rehearse):
        raise typer.Exit(2)
