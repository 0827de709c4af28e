"""The plots of a comparison."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedlora.report import MetricText
from fedlora.report.figure import (
    COLOURS,
    INK,
    MUTED,
    SEQUENTIAL,
    label,
    legend,
    literal,
    log_scale,
    panels,
    round_axis,
    save,
)
from simulations.studies.compare.frontier import frontier
from simulations.studies.compare.statistics import (
    ANY,
    FIXED,
    LIMITS,
    Interval,
    Row,
    by_strategy,
    interval,
    snrs_db,
    with_best_fixed,
)
from simulations.studies.compare.trial import Result

_MARKERS = "osD^vPX*"
_MOST_COLUMNS = 24  # of all panels of a rank map together, if its numbers are to be read


def draw_all(
    folder: Path,
    results: Sequence[Result],
    told: MetricText,
    formats: Sequence[str] = (),
) -> list[Path]:
    """Draw every plot and return the files.

    Parameters
    ----------
    folder
        Where they go.
    results
        All finished trials.
    told
        How the column ``metric`` is told.
    formats
        Further formats beside PNG, see ``fedlora.report.figure.save``.
    """
    rows = with_best_fixed([result.row for result in results])
    reward = told.loss.replace("loss", "reward")
    rows = [{**row, "told": told.value(row["metric"])} for row in rows]
    limits, log = LIMITS.get(told.key, ANY), told.key == "perplexity"
    figures = {
        "reward-over-snr": _over_snr(rows, "reward", reward, 1.0),
        "metric-over-snr": _over_snr(rows, "told", told.axis, 1.0, limits=limits, log=log),
        "bits-over-snr": _over_snr(
            rows, "adapter_bits", "adapters in Mbit", 1e-6, limits=LIMITS["adapter_bits"]
        ),
        "frontier": _frontier([result.row for result in results], told.loss),
        "metric-over-bits": _metric_over_bits(rows, told.axis, limits=limits, log=log),
    }
    for name in sorted({result.row["strategy"] for result in results}):
        own = [result for result in results if result.row["strategy"] == name]
        if not FIXED.fullmatch(name):
            figures[f"ranks-{_slug(name)}"] = _rank_map(name, own)
            figures[f"time-{_slug(name)}"] = _over_time(name, own)
    return [save(figure, folder / f"{name}.png", formats) for name, figure in figures.items()]


def _over_snr(
    rows: Sequence[Row],
    column: str,
    title: str,
    scale: float,
    *,
    limits: tuple[float, float] = ANY,
    log: bool = False,
) -> Figure:
    figure, (ax,) = panels(height=3.8)
    groups = by_strategy(rows)
    step = _step(snrs_db(rows), len(groups))
    for index, (name, own) in enumerate(groups.items()):
        # Side by side, or the intervals of like strategies would hide each other.
        shift = step * (index - (len(groups) - 1) / 2)
        snrs = snrs_db(own)
        points = [
            interval([scale * row[column] for row in own if row["snr_db"] == snr], limits)
            for snr in snrs
        ]
        _errors(ax, index, name, [s + shift for s in snrs], points)
    log_scale(ax, y=log)
    head = f"{title[:1].upper()}{title[1:]}"
    label(ax, title=f"{head}: {_what(rows)}{_seeds(rows)}", x="mean SNR in dB", y=title)
    ax.set_xticks(snrs_db(rows))
    legend(ax, columns=4)
    return figure


def _step(snrs: Sequence[float], strategies: int) -> float:
    """Return how far apart the strategies of one SNR stand, in dB: those of the next stay away."""
    if len(snrs) < 2:
        return 0.18
    gap = min(float(gap) for gap in np.diff(snrs))
    return min(0.009 * (snrs[-1] - snrs[0]), 0.6 * gap / strategies)


def _frontier(rows: Sequence[Row], loss: str) -> Figure:
    """Draw the final loss over the bits, with a line for each SNR below which there is nobody."""
    table = frontier(rows)
    figure, (ax,) = panels(height=4.2)
    for snr_db in snrs_db(table):
        best = [row for row in table if row["snr_db"] == snr_db and row["on_loss_frontier"]]
        bits = [1e-6 * row["adapter_bits"] for row in best]
        losses = [row["loss"] for row in best]
        ax.plot(bits, losses, color=MUTED, drawstyle="steps-post", linewidth=1, zorder=1)
        ax.annotate(f" {snr_db:g} dB", (bits[-1], losses[-1]), color=MUTED, fontsize=8)
    for index, (name, own) in enumerate(by_strategy(table).items()):
        ax.plot(
            [1e-6 * row["adapter_bits"] for row in own],
            [row["loss"] for row in own],
            color=COLOURS[index % len(COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            linestyle="",
            label=literal([name])[0],
        )
    title = "The least loss at so many bits: means over the seeds that all have"
    label(ax, title=title, x="adapters on the air in Mbit", y=f"final held-out {loss}")
    legend(ax, columns=4)
    return figure


def _metric_over_bits(
    rows: Sequence[Row], axis: str, *, limits: tuple[float, float], log: bool
) -> Figure:
    figure, (ax,) = panels(height=3.8)
    for index, (name, own) in enumerate(by_strategy(rows).items()):
        snrs = snrs_db(own)
        here = [[row for row in own if row["snr_db"] == snr] for snr in snrs]
        bits = [float(np.mean([1e-6 * row["adapter_bits"] for row in group])) for group in here]
        points = [interval([row["told"] for row in group], limits) for group in here]
        _errors(ax, index, name, bits, points)
    log_scale(ax, y=log)
    label(
        ax,
        title=f"What the bits buy: a point for each SNR, {_what(rows)}{_seeds(rows)}",
        x="adapters on the air in Mbit",
        y=axis,
    )
    legend(ax, columns=4)
    return figure


def _rank_map(name: str, results: Sequence[Result]) -> Figure:
    """Mean rank sent, by layer and projection, one panel for each SNR."""
    snrs = snrs_db([result.row for result in results])
    places = results[0].projections
    layers = sorted({layer for layer, _ in places})
    kinds = list(dict.fromkeys(kind for _, kind in places))
    maps = []
    for snr in snrs:
        ranks = np.mean([r.mean_ranks for r in results if r.row["snr_db"] == snr], axis=0)
        grid = np.full((len(kinds), len(layers)), np.nan)
        for (layer, kind), rank in zip(places, ranks, strict=True):
            grid[kinds.index(kind), layers.index(layer)] = rank
        maps.append(grid)
    figure, axes = panels(len(snrs), height=1.4 + 0.25 * len(kinds))
    top = max(float(np.nanmax(grid)) for grid in maps)
    image = None
    for ax, snr, grid in zip(axes, snrs, maps, strict=True):
        image = ax.imshow(grid, aspect="auto", cmap=SEQUENTIAL, vmin=0, vmax=max(top, 1e-9))
        if len(layers) * len(snrs) <= _MOST_COLUMNS:
            for (y, x), rank in np.ndenumerate(grid):
                dark = rank > 0.6 * top
                colour = "white" if dark else INK
                ax.text(x, y, f"{rank:.1f}", ha="center", va="center", fontsize=6, color=colour)
        ax.set_yticks(range(len(kinds)), literal(kinds) if ax is axes[0] else [], fontsize=7)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        ax.grid(visible=False)
        label(ax, title=f"{snr:g} dB", x="layer", y="")
    if image is not None:
        bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
        bar.set_label("mean rank", fontsize=9, color=MUTED)
        bar.ax.tick_params(colors=MUTED, labelsize=8)
        bar.outline.set_visible(False)
    figure.suptitle(f"Mean rank sent, {literal([name])[0]}", fontsize=9, color=MUTED)
    return figure


def _over_time(name: str, results: Sequence[Result]) -> Figure:
    """SNR and delivered rank of one client over the rounds of one run."""
    snrs = snrs_db([result.row for result in results])
    middle = snrs[len(snrs) // 2]
    result = next(r for r in results if r.row["snr_db"] == middle)
    client = result.trace[0]["client"]
    trace = [entry for entry in result.trace if entry["client"] == client]
    rounds = [entry["round"] for entry in trace]
    figure, (left, right) = panels(2)
    left.plot(rounds, [entry["snr_db"] for entry in trace], color=COLOURS[0], marker="o", ms=4)
    label(left, title=f"Client {client}, mean {middle:g} dB", x="round", y="reported SNR in dB")
    arrived = [entry["mean_rank"] if entry["delivered"] else np.nan for entry in trace]
    right.bar(rounds, [entry["mean_rank"] for entry in trace], color=COLOURS[1], label="late")
    right.bar(rounds, arrived, color=COLOURS[2], label="in time")
    for ax in (left, right):
        round_axis(ax, rounds)
    legend(right, columns=2)
    label(right, title=f"Mean rank sent, {literal([name])[0]}", x="round", y="mean rank")
    return figure


def _what(rows: Sequence[Row]) -> str:
    """Say what a point is: an interval takes two seeds."""
    several = any(
        len([row for row in own if row["snr_db"] == snr]) > 1
        for own in by_strategy(rows).values()
        for snr in snrs_db(own)
    )
    return "mean and 95% interval" if several else "mean"


def _seeds(rows: Sequence[Row]) -> str:
    """Say how many seeds stand behind a point."""
    counts = {
        len([row for row in own if row["snr_db"] == snr])
        for own in by_strategy(rows).values()
        for snr in snrs_db(own)
    }
    low, high = min(counts), max(counts)
    many = f"{low}" if low == high else f"{low} to {high}"
    return f" over {many} seed{'' if high == 1 else 's'}"


def _errors(
    ax: Axes, index: int, name: str, x: Sequence[float], points: Sequence[Interval]
) -> None:
    means = [point.mean for point in points]
    known = [point.known for point in points]
    below = [p.mean - p.low if k else 0.0 for p, k in zip(points, known, strict=True)]
    above = [p.high - p.mean if k else 0.0 for p, k in zip(points, known, strict=True)]
    ax.errorbar(
        x,
        means,
        yerr=[below, above],
        color=COLOURS[index % len(COLOURS)],
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=4,
        linewidth=1,
        capsize=2,
        label=literal([name])[0],
    )


def _slug(name: str) -> str:
    slug = "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
    # File systems take 255 bytes; the number tells apart what is cut.
    return slug if len(slug.encode()) <= 100 else f"{slug[:25]}-{zlib.crc32(name.encode()):08x}"
