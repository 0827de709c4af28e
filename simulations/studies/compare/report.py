"""What a comparison leaves: tables, plots, and the figures on the screen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.config import Scenario
from fedlora.report import MetricText, write_tables
from fedlora.tasks import task_class
from simulations.studies.compare.frontier import (
    EQUIVALENCE_COLUMNS,
    FRONTIER_COLUMNS,
    equivalence,
    frontier,
)
from simulations.studies.compare.page import Section, write_page
from simulations.studies.compare.plots import draw_all
from simulations.studies.compare.statistics import (
    ANY,
    LIMITS,
    WINNER_COLUMNS,
    Interval,
    by_strategy,
    interval,
    snrs_db,
    winners,
    with_best_fixed,
)
from simulations.studies.compare.store import CompareFolder
from simulations.studies.compare.trial import Result
from simulations.studies.kit import write_table

_NAME_WIDTH, _FIGURES_WIDTH = 14, 66
_MEANS = "Mean over seeds, with half of the 95% confidence interval"
_HEADER = ("SNR", "strategy", "seeds", "reward", "metric", "Mbit", "late", "rank")
_WINNERS = "Highest mean reward at each SNR; difference paired by seed"
_WINNERS_HEADER = ("SNR", "winner", "second", "difference", "95% interval", "p (Holm)")
_EQUAL_HEADER = ("SNR", "strategy", "seeds", "difference", "95% interval", "p (Holm)", "equal")
_NARROW: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
"""Lines that leave 80 columns to the figures."""


def write_results(
    folder: CompareFolder, scenario: Scenario, console: Console, formats: Sequence[str] = ()
) -> None:
    """Write tables and plots of all finished trials, and print the figures.

    Parameters
    ----------
    folder
        The comparison.
    scenario
        What is compared; names the metric.
    console
        Where the tables are printed.
    formats
        Of the figures, beside PNG.
    """
    folder.write_csv()
    rows = with_best_fixed([result.row for result in folder.found])
    best = winners(rows)
    write_table(folder.path / "winners.csv", WINNER_COLUMNS, best)
    told = _metric(folder.found, scenario)
    drawn = draw_all(folder.path / "plots", folder.found, told, formats)
    every = [result.row for result in folder.found]
    write_table(folder.path / "frontier.csv", FRONTIER_COLUMNS, frontier(every))
    console.print(_means(rows, told, max(_NAME_WIDTH, console.width - _FIGURES_WIDTH)))
    if best:
        console.print(_winners(best))
    sections = [Section(_MEANS, _header(told), means_rows(rows, told))]
    write_tables(folder.path / "means", sections[0].header, sections[0].rows, 2)
    if best:
        sections.append(Section(_WINNERS, _WINNERS_HEADER, _winners_rows(best)))
    if folder.margin is not None:
        equal = equivalence(every, folder.margin)
        sections.append(
            Section(_equal_title(folder.margin), _EQUAL_HEADER, _equivalence_rows(equal))
        )
        write_table(folder.path / "equivalence.csv", EQUIVALENCE_COLUMNS, equal)
        console.print(_equivalence(equal, folder.margin))
    remarks = [*_uneven(every), *_faults(folder.found)]
    for text in remarks:
        console.print(text, style="yellow", markup=False, highlight=False)
    write_page(folder.path, scenario, sections, drawn, remarks)
    console.print(Text(f"tables and plots: {folder.path}"), soft_wrap=True)


def _metric(results: Sequence[Result], scenario: Scenario) -> MetricText:
    """Return how the column ``metric`` is told; trials of earlier releases do not name it."""
    named = next((result.metric_name for result in results if result.metric_name), "")
    kind = task_class(scenario.task.kind)
    usual = "perplexity" if kind.language() else "accuracy" if kind.labelled else "metric"
    return MetricText(named or usual)


def _header(told: MetricText) -> list[str]:
    return [*_HEADER[:-4], told.axis, *_HEADER[-3:]]


def _uneven(rows: Sequence[Any]) -> list[str]:
    """Say at which SNRs the strategies were not run with the same seeds."""
    texts = []
    for snr_db in snrs_db(rows):
        here = by_strategy([row for row in rows if row["snr_db"] == snr_db])
        seeds = {name: {row["seed"] for row in own} for name, own in here.items()}
        shared = set.intersection(*seeds.values())
        if more := sorted(name for name, own in seeds.items() if own != shared):
            texts.append(
                f"At {snr_db:g} dB {', '.join(more)} had seeds that others had not: their means "
                f"are over other data. Common to all, and taken for frontier.csv: {len(shared)}."
            )
    return texts


def _faults(results: Sequence[Result]) -> list[str]:
    """Say of each strategy that erred how often, what first, and what its figures are worth."""
    texts = []
    for name in sorted({result.row["strategy"] for result in results if result.complaints}):
        own = [result for result in results if result.row["strategy"] == name]
        erred = [result for result in own if result.complaints]
        row = erred[0].row
        texts.append(
            f"{name} erred in {len(erred)} of {len(own)} runs, and its last valid ranks, or the "
            f"smallest, were used: its figures are not those of the strategy. First at "
            f"{row['snr_db']:g} dB, seed {row['seed']}: {erred[0].complaints[0]}"
        )
    return texts


def means_rows(rows: Sequence[Any], told: MetricText) -> list[list[str]]:
    """Return the cells of the table of means, a row for each SNR and strategy.

    Parameters
    ----------
    rows
        Of finished trials.
    told
        How the column ``metric`` is told.
    """
    cells = []
    for snr_db in snrs_db(rows):
        for name, own in by_strategy([row for row in rows if row["snr_db"] == snr_db]).items():
            chosen = own[0].get("chosen")
            first = [f"{snr_db:g}", f"{name}: {chosen}" if chosen else name, str(len(own))]
            bits = [1e-6 * row["adapter_bits"] for row in own]
            mean = interval([row["reward"] for row in own])
            first.append(_mean_text(mean, 3))
            mean = interval([told.value(row["metric"]) for row in own], LIMITS.get(told.key, ANY))
            first.append(_mean_text(mean, 3))
            mean = interval(bits, LIMITS["adapter_bits"])
            first.append(_mean_text(mean, _decimals(mean.mean)))
            first += [f"{sum(r['late'] for r in own) / len(own):.1f}"]
            first += [f"{sum(r['mean_rank'] for r in own) / len(own):.2f}"]
            cells.append(first)
    return cells


def _decimals(mean: float) -> int:
    """Return with how many decimals a size has three digits, 3 at most."""
    return next((n for n in range(3) if abs(mean) >= 10 ** (2 - n)), 3)


def _mean_text(mean: Interval, decimals: int) -> str:
    """Return a mean with half of its interval, or both halves where it ends at a limit."""
    if not mean.known:
        return f"{mean.mean:.{decimals}f}"
    above, below = mean.high - mean.mean, mean.mean - mean.low
    if abs(above - below) <= 1e-9 * max(1.0, abs(mean.mean)):
        return f"{mean.mean:.{decimals}f} ± {above:.{decimals}f}"
    return f"{mean.mean:.{decimals}f} +{above:.{decimals}f} -{below:.{decimals}f}"


def _means(rows: Sequence[Any], told: MetricText, name_width: int) -> Table:
    longest = max(len(f"{row.get('chosen') or ''}: {row['strategy']}") for row in rows)
    table = Table(**{**_NARROW, "padding": 0}, title=_MEANS)
    for heading in _header(told):
        if heading == "strategy":  # folded rather than cut: options tell strategies apart
            table.add_column(heading, overflow="fold", width=min(longest, name_width))
        else:
            table.add_column(heading, justify="right", min_width=len(heading), overflow="fold")
    cells = [
        [*row[:3], *(re.sub(r" ([±+-]) ?", r"\1", cell) for cell in row[3:])]  # 80 columns
        for row in means_rows(rows, told)
    ]
    for row, following in zip(cells, [*cells[1:], None], strict=True):
        table.add_row(*row, end_section=following is None or following[0] != row[0])
    return table


def _winners_rows(best: Sequence[Any]) -> list[list[str]]:
    return [
        [
            f"{row['snr_db']:g}",
            row["winner"],
            row["second"],
            f"{row['difference']:+.4f}",
            "one seed" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}",
            "-" if row["low"] is None else f"{row['p_holm']:.2g}",
        ]
        for row in best
    ]


def _winners(best: Sequence[Any]) -> Table:
    return _table(_WINNERS, _WINNERS_HEADER, _winners_rows(best), ("winner", "second"))


def _equal_title(margin: float) -> str:
    return f"Final loss beside the winner's, paired by seed; equal: within {margin:g} nats"


def _equivalence_rows(rows: Sequence[Any]) -> list[list[str]]:
    return [
        [
            f"{row['snr_db']:g}",
            row["strategy"],
            str(row["seeds"]),
            f"{row['loss_difference']:+.4f}",
            f"{row['low']:+.4f} to {row['high']:+.4f}",
            f"{row['p_holm']:.2g}",
            "yes" if row["equal"] else "not shown",
        ]
        for row in rows
    ]


def _equivalence(rows: Sequence[Any], margin: float) -> Table:
    return _table(_equal_title(margin), _EQUAL_HEADER, _equivalence_rows(rows), ("strategy",))


def _table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[str]
) -> Table:
    table = Table(**_NARROW, title=title)
    for heading in header:
        justify: Any = "left" if heading in text else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
