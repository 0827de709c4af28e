"""``fedlora rehearse``: a whole deployment of a scenario on this machine, in one command."""

from __future__ import annotations

from typing import Annotated

import typer

from fedlora.commands.options import OutOption, OverwriteOption, ScenarioArgument, SetOption


def rehearse(
    scenario: ScenarioArgument = "quickstart",
    nodes: Annotated[
        int, typer.Option("--nodes", min=1, max=64, help="How many devices there are.")
    ] = 3,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="A device's own file, once for each of them (default: its part of the scenario's "
            "data).",
        ),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node",
            metavar="KEY=VALUE",
            help="A key of every device's node configuration, such as `privacy-epsilon=4`.",
        ),
    ] = None,
    kill: Annotated[
        bool,
        typer.Option(
            "--kill", help="Kill one device after the first round, and show how it comes back."
        ),
    ] = False,
    out: OutOption = None,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Rehearse a deployment: a server and devices of a scenario on this machine, in one command.

    A SuperLink and a SuperNode for each device, with TLS, node keys, an edge package, ports and
    states of their own, as `docs/deploy.md` starts them on several machines; all of them end with
    this command. What each device wrote for its owner stays in `rehearsal` in the run folder.
    """
    from fedlora.commands.deploy.rehearsal import plan_rehearsal, rehearse_plan

    plan = plan_rehearsal(scenario, nodes, data or [], node or [], set_ or [], kill=kill)
    rehearse_plan(plan, out, overwrite=overwrite)
