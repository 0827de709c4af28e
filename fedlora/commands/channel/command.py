"""``fedlora channel``: what a recording of a link holds, as a ``trace`` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import typer

from fedlora.commands.options import OverwriteOption


def channel(
    action: Annotated[
        str,
        typer.Argument(
            help="`plot`: draw a recording, and tell what was read.",
            click_type=click.Choice(["plot"]),
        ),
    ],
    file: Annotated[str, typer.Argument(help="A recording, as `channel.options.path` names it.")],
    format_: Annotated[
        str, typer.Option("--format", help="`channel.trace_format` (default: found in the file).")
    ] = "",
    values: Annotated[
        str,
        typer.Option(
            help="`snr` or `rate` (default: the SNR where the file has one).",
            click_type=click.Choice(["", "snr", "rate"]),
        ),
    ] = "",
    step_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds of a line, where the format has none.")
    ] = 0.0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Picture to write (default: `NAME.png` here).")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw what a trace replays; tell format, rows, seconds, unit, gaps and idle times."""
    del action
    from fedlora.commands.channel.plot import plot_recording

    plot_recording(file, format_, values, step_s, out, overwrite=overwrite)
