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
) -> None:
    """Predict what a run will take: bits, air time and energy by client, and server memory.

    Its rounds and batches are walked without a model. Status 2 where it cannot be run.
    """
    from fedlora.commands.plan_view import show_plan

    if not show_plan(scenario, set_ or [], json_, overwrite=overwrite):
        raise typer.Exit(2)
