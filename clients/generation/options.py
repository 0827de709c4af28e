"""Options of ``fedlora generate`` and ``fedlora chat``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import typer

RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Folder of a finished run; with `--server` also what `fedlora slice RUN` wrote.",
    ),
]
ModelOption = Annotated[
    str, typer.Option(help="The backbone on this machine (default: the run's `model.path`).")
]
MostOption = Annotated[int, typer.Option(min=1, help="Tokens to write at most.")]
TemperatureOption = Annotated[
    float, typer.Option(help="0 takes the likeliest token; above it tokens are drawn.")
]
TopKOption = Annotated[int, typer.Option(help="Draw among so many likeliest tokens; 0: all.")]
TopPOption = Annotated[
    float, typer.Option(help="Draw among the likeliest tokens that have this probability together.")
]
PenaltyOption = Annotated[
    float, typer.Option(help="Above 1, tokens that were there already become less likely.")
]
SeedOption = Annotated[
    int | None, typer.Option(help="Of the draws: one seed writes one text (default: any).")
]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End before this text; may be given repeatedly."),
]
DraftsOption = Annotated[
    str,
    typer.Option(
        click_type=click.Choice(["none", "prompt", "history"]),
        help="Where to look for what may come next, so that one exchange brings several tokens: "
        "nowhere, in prompt and output, or also in what was written before, which is then kept in "
        "`~/.fedlora/drafts`. No choice changes the text.",
    ),
]
LeaveAfterOption = Annotated[
    int,
    typer.Option(
        "--leave-after",
        min=0,
        help="Let the head judge after so many of the model's blocks, and take a token there that "
        "it is sure of; with `--leave-at`. Changes the text (default: no token leaves early).",
    ),
]
LeaveAtOption = Annotated[
    float,
    typer.Option(
        "--leave-at",
        help="With `--leave-after`: probability of the likeliest token from which on it is taken.",
    ),
]
StatsOption = Annotated[
    bool, typer.Option("--stats", help="Say on stderr how fast it was, and what crossed the cut.")
]


ServerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help="A `fedlora serve` whose blocks are used instead of this process's; given again, the "
        "next one is asked where one is lost.",
    ),
]
RootOption = Annotated[
    Path | None, typer.Option(help="With `--server`: the authority's certificate, `ca.crt`.")
]
KeyOption = Annotated[
    Path | None, typer.Option(help="With `--server`: this device's private key, `nodeK`.")
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="With `--server`: plain text, on loopback alone.")
]
NodeConfigOption = Annotated[
    str,
    typer.Option(
        help="With `--server`: this device's node configuration, as `flower-supernode` takes it; "
        "what its owner does not allow is refused."
    ),
]
GiveUpOption = Annotated[
    float, typer.Option(min=0.0, help="Seconds for which servers that were lost are dialled again.")
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="With `--server`: go on with the text that a process of this device was killed in.",
    ),
]
