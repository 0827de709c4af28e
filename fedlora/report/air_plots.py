"""Plots of channel, ranks and air time: each returns a figure, or None where there is no data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedlora.report.figure import (
    COLOURS,
    GRID,
    INK,
    MAX_NAMED,
    MUTED,
    SEQUENTIAL,
    label,
    literal,
    panels,
    round_axis,
)
from fedlora.report.records import Rounds, client_ids, client_series, series
from fedlora.report.units import energy_scale

_NOT_SENT, _IN_TIME, _LATE = 0, 1, 2
_DELIVERY_COLOURS = (GRID, COLOURS[2], COLOURS[1])

Lines = dict[str, tuple[list[int], list[float]]]
"""By client: rounds and values."""


def channel(rounds: Rounds) -> Figure | None:
    """Draw the downlink and the mean rank over rounds, a line for each client.

    The downlink is shown as its signal-to-noise ratio, or as its rate where the channel was
    measured and has none. Where nothing varies there is nothing to see, and no figure.
    """
    link, unit = _lines(rounds, "snr_db"), "SNR in dB"
    if not link:
        link, unit = _lines(rounds, "rate_bps", scale=1e-6), "rate in Mbit/s"
    rank = _lines(rounds, "mean_rank")
    if not (_varies(link) or _varies(rank)):
        return None
    drawn = [
        (lines, title, name)
        for lines, title, name in (
            (link, "Channel", f"downlink {unit}"),
            (rank, "Rank", "mean rank over projections"),
        )
        if lines
    ]
    figure, axes = panels(len(drawn), height=3.4)
    for ax, (lines, title, name) in zip(axes, drawn, strict=True):
        _draw_lines(ax, lines)
        label(ax, title=title, x="round", y=name)
    if rank:
        axes[-1].set_ylim(bottom=0)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )
    return figure


def ranks(rounds: Rounds, projections: Sequence[tuple[int, str]]) -> Figure | None:
    """Draw the mean rank over rounds and clients: layers down, projections across.

    Parameters
    ----------
    rounds
        What ``RunFolder.read_metrics`` returned.
    projections
        Layer and short name of each projection, in the order of the clients' ``ranks``.
    """
    vectors = [
        client["ranks"]
        for record in rounds
        for client in (record.get("clients") or {}).values()
        if len(client.get("ranks") or ()) == len(projections)
    ]
    if not vectors or not projections:
        return None
    layers = sorted({layer for layer, _ in projections})
    names = list(dict.fromkeys(name for _, name in projections))
    mean = np.asarray(vectors, float).mean(axis=0)
    grid = np.full((len(layers), len(names)), np.nan)
    for value, (layer, name) in zip(mean, projections, strict=True):
        grid[layers.index(layer), names.index(name)] = value
    figure, (ax,) = panels(height=min(9.0, 1.6 + 0.32 * len(layers)))
    top = max(float(np.nanmax(grid)), 1.0)
    image = ax.imshow(grid, cmap=SEQUENTIAL, vmin=0, vmax=top, aspect="auto")
    ax.grid(visible=False)
    ax.set_xticks(range(len(names)), literal(names), rotation=30 if len(names) > 8 else 0)
    ax.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    if len(layers) <= 24 and len(names) <= 12:
        for (row, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                colour = "white" if value > 0.6 * top else INK
                ax.text(
                    column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour
                )
    label(ax, title="Rank by projection", x="projection", y="layer")
    bar = figure.colorbar(image, ax=ax, pad=0.02)
    bar.set_label("mean rank", fontsize=9, color=MUTED)
    bar.ax.tick_params(colors=MUTED, labelsize=8)
    bar.outline.set_visible(False)
    return figure


def deliveries(rounds: Rounds) -> Figure | None:
    """Draw for each client and round whether an adapter came in time, late or not at all.

    Returns None where no adapter was ever sent.
    """
    clients = client_ids(rounds)
    numbers = [record.get("round", index) for index, record in enumerate(rounds, start=1)]
    states = np.zeros((len(clients), len(numbers)))
    for column, record in enumerate(rounds):
        for row, client in enumerate(clients):
            delivered = (record.get("clients") or {}).get(client, {}).get("delivered")
            states[row, column] = {None: _NOT_SENT, True: _IN_TIME, False: _LATE}[delivered]
    if not np.any(states):
        return None
    named = len(clients) <= MAX_NAMED
    figure, (ax,) = panels(height=1.5 + 0.24 * len(clients) if named else 5.0)
    ax.imshow(states, cmap=ListedColormap(_DELIVERY_COLOURS), vmin=0, vmax=2, aspect="auto")
    if named and len(numbers) <= MAX_NAMED:
        for row, client in enumerate(clients):
            for place, rank in zip(*client_series(rounds, client, "mean_rank"), strict=True):
                column = numbers.index(place)
                colour = INK if states[row, column] == _NOT_SENT else "white"
                ax.text(
                    column, row, f"{rank:.1f}", ha="center", va="center", fontsize=7, color=colour
                )
    ax.grid(visible=False)
    if len(numbers) <= MAX_NAMED:
        ax.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    ax.set_yticks(range(len(clients)) if named else [], literal(clients) if named else [])
    label(ax, title="Deliveries, with their mean rank", x="round", y="client")
    patches = [
        Patch(color=colour, label=name)
        for colour, name in zip(_DELIVERY_COLOURS, ("none sent", "in time", "late"), strict=True)
    ]
    ax.legend(
        handles=patches,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=3,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )
    return figure


def air_time(rounds: Rounds) -> Figure | None:
    """Draw air time and transmit energy of each round, and the adapters that came late."""
    numbers, seconds = series(rounds, "air_seconds")
    if not any(seconds):
        return None
    spent, joules = series(rounds, "energy_joules")
    figure, axes = panels(2 if any(joules) else 1, height=2.8)
    ax = axes[0]
    if any(joules):
        scale, unit = energy_scale(max(joules))
        axes[1].bar(spent, [value / scale for value in joules], 0.7, color=COLOURS[4])
        label(axes[1], title="Transmit energy", x="round", y=f"{unit}, all clients, both ends")
        round_axis(axes[1], spent)
    ax.bar(numbers, seconds, 0.7, color=COLOURS[5])
    late = dict(zip(*series(rounds, "late_deliveries"), strict=True))
    for number, value in zip(numbers, seconds, strict=True):
        if late.get(number):
            ax.annotate(
                f"{late[number]:.0f} late",
                (number, value),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=COLOURS[1],
            )
    ax.margins(y=0.15)
    label(ax, title="Air time", x="round", y="seconds, slowest client")
    round_axis(ax, numbers)
    return figure


def _lines(rounds: Rounds, key: str, *, scale: float = 1.0) -> Lines:
    lines = {client: client_series(rounds, client, key) for client in client_ids(rounds)}
    return {client: (x, [scale * value for value in y]) for client, (x, y) in lines.items() if x}


def _varies(lines: Lines) -> bool:
    return len({value for _, values in lines.values() for value in values}) > 1


def _draw_lines(ax: Axes, lines: Lines) -> None:
    """Give each client a colour and a name, or show many of them as a crowd with its median."""
    if len(lines) <= len(COLOURS):
        for colour, name, line in zip(COLOURS, literal(lines), lines.values(), strict=False):
            ax.plot(*line, "o-", color=colour, markersize=3, linewidth=1.4, label=name)
    else:
        by_round: dict[int, list[float]] = {}
        for line in lines.values():
            ax.plot(*line, color=MUTED, alpha=0.25, linewidth=0.8)
            for place, value in zip(*line, strict=True):
                by_round.setdefault(place, []).append(value)
        places = sorted(by_round)
        medians = [float(np.median(by_round[place])) for place in places]
        ax.plot(places, medians, "o-", color=COLOURS[0], label="median of clients")
    round_axis(ax, sorted({place for places, _ in lines.values() for place in places}))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
