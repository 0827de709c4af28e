"""``fedlora report``: a run's page, plots and result table again, in the forms that papers want."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora.errors import FedloraError

_HEADER = ("figure", "value", "remark")


def report(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    figures: Annotated[
        str, typer.Option(help="Plots as `png`, and as `pdf` or `svg` too, separated by commas.")
    ] = "png",
) -> None:
    """Write a run's page and plots again, and its result table as Markdown and LaTeX.

    All of it follows from the run's records, which stay as they are.
    """
    from fedlora.report import RunFolder, result_rows, write_tables
    from fedlora.report.figure import parse_formats
    from fedlora.report.page import write_report

    formats, folder = parse_formats(figures), RunFolder(run_folder)
    if not folder.read_metrics():
        raise FedloraError(f"{run_folder} holds no finished round of a run; name a run folder")
    summary = folder.read_summary() or {}
    page = write_report(folder, formats)
    rows = [row for group in result_rows(summary) for row in group] if summary else []
    if rows:
        write_tables(folder.path / "result", _HEADER, rows)
    typer.echo(f"page: {page}\nplots: {folder.plots}")
    if rows:
        typer.echo(f"result table: {folder.path / 'result.md'} and result.tex")
