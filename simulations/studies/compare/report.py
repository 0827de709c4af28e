"""What a comparison leaves: tables, plots, and the figures on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedlora.config import Scenario
from fedlora.tasks import task_class
from simulations.studies.compare.frontier import (
    EQUIVALENCE_COLUMNS,
    FRONTIER_COLUMNS,
    equivalence,
    frontier,
)
from simulations.studies.compare.plots import draw_all
from simulations.studies.compare.statistics import (
    WINNER_COLUMNS,
    by_strategy,
    interval,
    snrs_db,
    winners,
    with_best_fixed,
)
from simulations.studies.compare.store import CompareFolder, write_table
from simulations.studies.compare.trial import Result

_NAME_WIDTH, _FIGURES_WIDTH = 14, 66
_NARROW: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
"""Lines that leave 80 columns to the figures."""


def write_results(folder: CompareFolder, scenario: Scenario, console: Console) -> None:
    """Write tables and plots of all finished trials, and print the figures.

    Parameters
    ----------
    folder
        The comparison.
    scenario
        What is compared; names the metric.
    console
        Where the tables are printed.
    """
    folder.write_csv()
    rows = with_best_fixed([result.row for result in folder.results])
    best = winners(rows)
    write_table(folder.path / "winners.csv", WINNER_COLUMNS, best)
    name = "perplexity" if not task_class(scenario.task.kind).pooled else "accuracy"
    draw_all(folder.path / "plots", folder.results, name, log_metric=name == "perplexity")
    every = [result.row for result in folder.results]
    write_table(folder.path / "frontier.csv", FRONTIER_COLUMNS, frontier(every))
    console.print(_means(rows, name, max(_NAME_WIDTH, console.width - _FIGURES_WIDTH)))
    if best:
        console.print(_winners(best))
    if folder.margin is not None:
        equal = equivalence(every, folder.margin)
        write_table(folder.path / "equivalence.csv", EQUIVALENCE_COLUMNS, equal)
        console.print(_equivalence(equal, folder.margin))
    for text in (*_uneven(every), *_faults(folder.results)):
        console.print(text, style="yellow", markup=False, highlight=False)
    console.print(f"tables and plots: {folder.path}")


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


def _means(rows: Sequence[Any], metric: str, name_width: int) -> Table:
    longest = max(len(f"{row.get('chosen') or ''}: {row['strategy']}") for row in rows)
    table = Table(**_NARROW, title="Mean over seeds, with half of the 95% confidence interval")
    for heading in ("SNR", "strategy", "seeds", "reward", metric, "Mbit", "late", "rank"):
        if heading == "strategy":  # folded rather than cut: options tell strategies apart
            table.add_column(heading, overflow="fold", width=min(longest, name_width))
        else:
            table.add_column(heading, justify="right", min_width=len(heading), overflow="fold")
    for snr_db in snrs_db(rows):
        here = by_strategy([row for row in rows if row["snr_db"] == snr_db])
        for name, own in here.items():
            chosen = own[0].get("chosen")
            cells = [f"{snr_db:g}", f"{name}: {chosen}" if chosen else name, str(len(own))]
            for column, scale in (("reward", 1), ("metric", 1), ("adapter_bits", 1e-6)):
                mean = interval([scale * row[column] for row in own])
                half = mean.high - mean.mean
                cells.append(f"{mean.mean:.3f}" + (f" ± {half:.3f}" if len(own) > 1 else ""))
            cells += [f"{sum(r['late'] for r in own) / len(own):.1f}"]
            cells += [f"{sum(r['mean_rank'] for r in own) / len(own):.2f}"]
            table.add_row(*cells)
        table.add_section()
    return table


def _winners(best: Sequence[Any]) -> Table:
    table = Table(**_NARROW, title="Highest mean reward at each SNR; difference paired by seed")
    for heading in ("SNR", "winner", "second", "difference", "95% interval", "p (Holm)"):
        if heading in ("winner", "second"):
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", overflow="fold")
    for row in best:
        table.add_row(
            f"{row['snr_db']:g}",
            row["winner"],
            row["second"],
            f"{row['difference']:+.4f}",
            f"{row['low']:+.4f} to {row['high']:+.4f}",
            f"{row['p_holm']:.2g}",
        )
    return table


def _equivalence(rows: Sequence[Any], margin: float) -> Table:
    title = f"Final loss beside the winner's, paired by seed; equal: within {margin:g} nats"
    table = Table(**_NARROW, title=title)
    for heading in ("SNR", "strategy", "seeds", "difference", "95% interval", "p (Holm)", "equal"):
        if heading == "strategy":
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        table.add_row(
            f"{row['snr_db']:g}",
            row["strategy"],
            str(row["seeds"]),
            f"{row['loss_difference']:+.4f}",
            f"{row['low']:+.4f} to {row['high']:+.4f}",
            f"{row['p_holm']:.2g}",
            "yes" if row["equal"] else "not shown",
        )
    return table
