"""The tables that the command line prints when a run is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.report.records import Rounds, client_totals
from fedlora.report.rows import client_table, headline, metric_of, result_rows
from fedlora.report.run_folder import RunFolder


def result_table(summary: Mapping[str, Any], *, title: str = "result") -> Table:
    """Lay out the final figures of a run.

    Parameters
    ----------
    summary
        What ``RunFolder.read_summary`` returned.
    title
        Written above the table.
    """
    table = Table(box=box.SIMPLE, show_header=False, title=title, title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("value", justify="right", style="bold", no_wrap=True)
    table.add_column("remark", style="dim")
    for group in result_rows(summary):
        for name, value, remark in group:
            table.add_row(Text(name), Text(value), Text(remark))
        table.add_section()
    return table


def clients_table(rounds: Rounds, *, metric_name: str = "metric", limit: int = 16) -> Table | None:
    """Lay out the clients, one a row; None when the rounds name none.

    Parameters
    ----------
    rounds
        What ``RunFolder.read_metrics`` returned.
    metric_name
        What files call the metric.
    limit
        Most clients to show.
    """
    totals = client_totals(rounds)
    if not totals:
        return None
    header, rows = client_table(totals, metric_name, wide=False)
    more = len(rows) - limit
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title="clients",
        title_justify="left",
        caption=f"and {more} more in metrics.jsonl" if more > 0 else None,
        caption_justify="left",
    )
    for name in header:
        table.add_column(Text(name), justify="left" if name == "client" else "right", no_wrap=True)
    for row in rows[:limit]:
        table.add_row(*(Text(cell) for cell in row))
    return table


def print_result(folder: RunFolder, console: Console | None = None) -> None:
    """Print the result in words, both tables, and where the files are."""
    console = console or Console()
    summary = folder.read_summary()
    if summary is None:
        console.print(Text(f"no summary in {folder.path}"), soft_wrap=True)
        return
    console.print(result_table(summary))
    clients = clients_table(folder.read_metrics(), metric_name=metric_of(summary).key)
    if clients is not None:
        console.print(clients)
    console.print(Text(headline(summary), style="bold"))
    console.print(Text(f"Run folder: {folder.path}"), soft_wrap=True)
    if folder.report.exists():
        console.print(Text(f"Report: {folder.report}"), soft_wrap=True)
