"""Plots of learning, traffic and data: each returns a figure, or None where there is no data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedlora.report.figure import (
    COLOURS,
    GRID,
    INK,
    MAX_NAMED,
    MUTED,
    label,
    legend,
    literal,
    panels,
    round_axis,
)
from fedlora.report.records import (
    DIRECTIONS,
    Rounds,
    client_ids,
    client_series,
    cut_bits,
    series,
)
from fedlora.report.units import MetricText, bits_scale


def learning(rounds: Rounds, *, metric_before: float | None = None) -> Figure | None:
    """Draw metric and loss over rounds, and the metric of the head alone as a line.

    Parameters
    ----------
    rounds
        What ``RunFolder.read_metrics`` returned.
    metric_before
        Metric of the same head on the frozen backbone.
    """
    metric, loss, train = (series(rounds, key) for key in ("metric", "loss", "train_loss"))
    if not (metric[0] or loss[0] or train[0]):
        return None
    told, arrow = metric_told(rounds)
    figure, (left, right) = panels(2)
    left.margins(y=0.12)
    left.plot(
        metric[0],
        [told.value(v) for v in metric[1]],
        "o-",
        color=COLOURS[0],
        markersize=4,
        label="all clients",
    )
    _spread(left, rounds, told)
    if metric_before is not None:
        line = told.value(metric_before)
        left.axhline(line, color=MUTED, linestyle="--", linewidth=1.2)
        left.annotate(
            f"head alone {told.text(metric_before)}",
            (1, line),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=MUTED,
        )
    label(left, title=f"{told.title} {arrow}", x="round", y=f"{told.axis}, held out")
    if train[0]:  # under privacy clients report none
        right.plot(*train, "s--", color=COLOURS[1], markersize=3, linewidth=1.2, label="training")
    right.plot(*loss, "o-", color=COLOURS[0], markersize=4, label="held out")
    label(right, title="Loss", x="round", y=told.loss)
    for ax in (left, right):
        round_axis(ax, [record.get("round", 1) for record in rounds])
        legend(ax, columns=2)
    return figure


def client_metric(rounds: Rounds) -> Figure | None:
    """Draw each client's metric at its first and last evaluation, the best client on top."""
    ends = {
        client: (values[0], values[-1])
        for client in client_ids(rounds)
        if (values := client_series(rounds, client, "metric")[1])
    }
    if not ends:
        return None
    told, arrow = metric_told(rounds)
    order = sorted(ends, key=lambda client: ends[client][1], reverse=arrow == "↓")
    first, last = (np.array([told.value(ends[client][end]) for client in order]) for end in (0, 1))
    places = np.arange(len(order))
    named = len(order) <= MAX_NAMED
    figure, (ax,) = panels(height=1.5 + 0.24 * len(order) if named else 5.0)
    size = 6 if named else 3
    ax.hlines(places, first, last, color=GRID, linewidth=size / 2)
    ax.plot(
        first,
        places,
        "o",
        ms=size,
        color="white",
        mec=MUTED,
        mew=size / 6,
        label="first evaluation",
    )
    ax.plot(last, places, "o", ms=size, color=COLOURS[0], label="last evaluation")
    ax.axvline(float(last.mean()), color=MUTED, linestyle="--", linewidth=1, label="mean of last")
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x", color=GRID, linewidth=0.8)
    ax.set_yticks(places if named else [], literal(order) if named else [])
    label(ax, title=f"{told.title} by client {arrow}", x=f"{told.axis}, held out", y="")
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 3, "borderaxespad": 0.3}
    ax.legend(**above, frameon=False, fontsize=8, labelcolor=INK)
    if not named:
        ax.set_ylabel(f"{len(order)} clients, ordered", fontsize=9, color=MUTED)
    return figure


def traffic(rounds: Rounds) -> Figure | None:
    """Draw the payload of each round, stacked by kind, up beside down."""
    numbers = [record.get("round", index) for index, record in enumerate(rounds, start=1)]
    bits = {
        way: {
            kind: np.array(
                [((r.get("bits") or {}).get(way) or {}).get(kind, 0) for r in rounds], float
            )
            for kind in kinds
        }
        for way, kinds in DIRECTIONS.items()
    }
    stacks = [np.sum(list(kinds.values()), axis=0) for kinds in bits.values()]
    tallest = float(np.max(stacks, initial=0.0))
    if tallest == 0:
        return None
    scale, unit = bits_scale(tallest)
    figure, axes = panels(2)
    for ax, (way, kinds) in zip(axes, bits.items(), strict=True):
        base = np.zeros(len(numbers))
        for kind, colour in zip(kinds, (COLOURS[0], COLOURS[4], COLOURS[2], MUTED), strict=True):
            ax.bar(numbers, kinds[kind] / scale, 0.7, bottom=base, color=colour, label=kind)
            base = base + kinds[kind] / scale
        ax.set_ylim(0, 1.08 * tallest / scale)
        label(ax, title=f"{way.capitalize()}link", x="round", y=f"{unit} in the round, all clients")
        round_axis(ax, numbers)
        legend(ax, columns=4)
    return figure


def quality_over_bits(rounds: Rounds) -> Figure | None:
    """Draw metric and loss over what has crossed the cut so far, both ways, adapters apart."""
    bits, x = 0.0, dict[int, float]()
    for index, record in enumerate(rounds, start=1):
        bits += cut_bits(record.get("bits") or {})
        x[record.get("round", index)] = bits
    metric, loss = series(rounds, "metric"), series(rounds, "loss")
    if not bits or not (metric[0] or loss[0]):
        return None
    scale, unit = bits_scale(bits)
    told, arrow = metric_told(rounds)
    figure, axes = panels(2)
    for ax, (numbers, values), (title, y), colour in zip(
        axes,
        ((metric[0], [told.value(v) for v in metric[1]]), loss),
        ((f"{told.title} {arrow}", told.axis), ("Loss ↓", "loss")),
        (COLOURS[0], COLOURS[1]),
        strict=True,
    ):
        ax.margins(y=0.12)
        ax.plot([x[number] / scale for number in numbers], values, "o-", color=colour, ms=4)
        ax.set_xlim(left=0)
        label(ax, title=title, x=f"{unit} across the cut so far, all clients", y=f"{y}, held out")
    return figure


def holdings(counts: Mapping[str, Mapping[str, int]]) -> Figure | None:
    """Draw who holds what: a bubble for each client and label, its area the number of rows.

    Parameters
    ----------
    counts
        By label: the number of training rows of each client.
    """
    labels = list(counts)
    clients = list(dict.fromkeys(itertools.chain.from_iterable(counts.values())))
    rows = np.array([[counts[name].get(client, 0) for client in clients] for name in labels], float)
    if rows.size == 0 or rows.max() == 0:
        return None
    cell = min(0.3, 7.0 / max(len(labels), 1))
    figure, (ax,) = panels(height=1.5 + cell * max(len(labels), 4))
    row, column = np.nonzero(rows)
    pitch = min(72 * cell, 72 * 6.4 / len(clients))
    area = (0.92 * pitch) ** 2 * rows[row, column] / rows.max()
    ax.scatter(column, row, s=area, color=COLOURS[0], alpha=0.75, linewidths=0)
    ax.set_xlim(-0.7, len(clients) - 0.3)
    ax.set_ylim(len(labels) - 0.3, -0.7)
    for axis, names in ((ax.xaxis, clients), (ax.yaxis, labels)):
        named = len(names) <= MAX_NAMED
        axis.set_ticks(range(len(names)) if named else [], literal(names) if named else [])
    ax.tick_params(axis="x", rotation=45 if len(clients) > 8 else 0)
    ax.grid(axis="both", color=GRID, linewidth=0.6)
    largest = f"largest bubble: {rows.max():,.0f} rows"
    x, y = (
        "" if len(names) <= MAX_NAMED else f"{len(names)} {kind}"
        for names, kind in ((clients, "clients"), (labels, "labels"))
    )
    label(ax, title="Who holds what", x=x, y=y)
    ax.set_title(largest, loc="right", fontsize=8, color=MUTED, pad=8)
    return figure


def metric_told(rounds: Rounds) -> tuple[MetricText, str]:
    """Return how the metric is told, and an arrow that points where it is better."""
    for record in reversed(rounds):
        if "metric_name" in record:
            (name,) = literal([record["metric_name"]])
            return MetricText(name), "↑" if record.get("higher_is_better", True) else "↓"
    return MetricText("metric"), ""


def _spread(ax: Axes, rounds: Rounds, told: MetricText) -> None:
    """Shade the middle four fifths of the clients where there are enough of them."""
    places, low, high = [], [], []
    for index, record in enumerate(rounds, start=1):
        values = [
            told.value(value)
            for client in client_ids([record])
            for value in client_series([record], client, "metric")[1]
        ]
        if len(values) >= 4:
            places.append(record.get("round", index))
            low.append(np.quantile(values, 0.1))
            high.append(np.quantile(values, 0.9))
    if places:
        ax.fill_between(
            places,
            low,
            high,
            color=COLOURS[0],
            alpha=0.15,
            linewidth=0,
            label="10% to 90% of clients",
        )
