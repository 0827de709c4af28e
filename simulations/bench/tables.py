"""The tables that ``fedlora bench`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from simulations.bench.context import Figure

_SPEED = "speed."
_COLUMNS = ("split", "unsplit", "split_to_unsplit", "split_to_in_turn", "in_turn_to_unsplit")


def print_figures(figures: Sequence[Figure], console: Console) -> None:
    """Print the contests of speed one a row, and the other figures one a row."""
    speed = [figure for figure in figures if figure.name.startswith(_SPEED)]
    others = [figure for figure in figures if not figure.name.startswith(_SPEED)]
    if speed:
        console.print(_speed_table(speed))
    if others:
        console.print(_plain_table(others))


def _speed_table(figures: Sequence[Figure]) -> Table:
    contests: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        contest, _, measured = figure.name.removeprefix(_SPEED).rpartition(".")
        contests.setdefault(contest, {})[measured] = figure
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title="speed in tokens/s, and ratios (above 1: the first is faster)",
        title_justify="left",
    )
    table.add_column("contest")
    for name in ("split", "unsplit", "split / unsplit", "split / in turn", "in turn / unsplit"):
        table.add_column(name, justify="right")
    for contest, figure_by in contests.items():
        cells = [_cell(figure_by.get(column)) for column in _COLUMNS]
        table.add_row(contest.replace("_", " ").replace(".", ", "), *cells)
    return table


def _plain_table(figures: Sequence[Figure]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("target")
    for figure in figures:
        table.add_row(figure.name.replace("_", " "), _cell(figure), figure.unit, figure.target)
    return table


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    value = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.3g}"
    color = {None: "", True: "[green]", False: "[red]"}[figure.met]
    return color + value
