"""The plots of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from fedlora.report.figure import COLOURS, INK, label, legend, log_scale, panels, round_axis, save
from simulations.studies.participation.trend import Trend, explained

Curves = Mapping[int, np.ndarray]
"""By number of participants: held-out loss of every seed, of shape (seeds, rounds)."""


def draw_participants(path: Path, curves: Curves, trend: Trend, loss: str) -> Path:
    """Draw the loss over rounds beside the trend, and the last loss over the participants."""
    figure, (left, right) = panels(2, height=3.6)
    means = {n: losses.mean(axis=0) for n, losses in curves.items()}
    rounds = np.arange(1, len(next(iter(means.values()))) + 1)
    for index, (n, losses) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        left.plot(rounds, means[n], "o", ms=3, color=colour, label=f"{n}")
        left.fill_between(rounds, losses.min(0), losses.max(0), color=colour, alpha=0.15, lw=0)
        left.plot(rounds, trend.loss(rounds, n), color=colour, linewidth=1.2)
    label(left, title="Measured (dots) and predicted (lines)", x="round", y=f"held-out {loss}")
    round_axis(left, list(rounds))
    legend(left, columns=len(curves))

    last = int(rounds[-1])
    counts = np.array(sorted(curves))
    ends = np.array([means[n][-1] for n in counts])
    spans = np.array([[curves[n][:, -1].min(), curves[n][:, -1].max()] for n in counts])
    right.errorbar(
        counts,
        ends,
        yerr=np.abs(spans.T - ends),
        fmt="o",
        ms=4,
        capsize=2,
        color=COLOURS[0],
        label="measured, with the range over seeds",
    )
    fine = np.arange(1, trend.clients + 1)
    predicted = [float(trend.loss(np.array([last]), int(n))[0]) for n in fine]
    right.plot(fine, predicted, color=INK, linewidth=1.2, label="predicted")
    share = explained(trend, means)
    label(right, title=f"After round {last} (R² of all rounds {share:.2f})", x="participants", y="")
    legend(right, columns=2)
    return save(figure, path)


def draw_trade_off(
    path: Path, groups: Mapping[str, Sequence[Mapping[str, float]]], loss: str
) -> Path:
    """Draw the loss over air time, and what the trade-off buys and costs."""
    figure, (left, right) = panels(2, height=3.6)
    for index, (name, rows) in enumerate(groups.items()):
        seeds = sorted({row["seed"] for row in rows})
        own = [[row for row in rows if row["seed"] == seed] for seed in seeds]
        seconds = np.mean([[row["air_seconds"] for row in one] for one in own], axis=0)
        losses = np.mean([[row["loss"] for row in one] for one in own], axis=0)
        colour, dashed = COLOURS[index % len(COLOURS)], name.startswith("n")
        left.plot(seconds, losses, "--" if dashed else "-", color=colour, lw=1.4, label=name)
        _point(right, name, rows, colour, hollow=dashed)
    log_scale(left, x=True)
    label(left, title="Loss over air time", x="modelled air time in s", y=f"held-out {loss}")
    legend(left, columns=4)
    label(right, title="What a round costs", x="mean delay of a round in s", y="mean participants")
    log_scale(right, x=True)
    return save(figure, path)


def _point(
    ax: Axes, name: str, rows: Sequence[Mapping[str, float]], colour: str, *, hollow: bool
) -> None:
    x, y = (float(np.mean([row[key] for row in rows])) for key in ("round_seconds", "chosen"))
    ax.plot(x, y, "o", ms=6, color="white" if hollow else colour, mec=colour, mew=1.5)
    ax.annotate(name, (x, y), xytext=(6, -3), textcoords="offset points", fontsize=8, color=INK)
