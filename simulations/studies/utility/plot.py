"""Accuracy over epsilon, one line for each mechanism."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from fedlora.report.figure import COLOURS, MUTED, label, legend, panels, save
from simulations.studies.utility.trial import NO_NOISE, Row


def draw(rows: Sequence[Row], path: Path, name: str) -> Path:
    """Draw the study's means with all seeds as dots, and the mean without noise as a line."""
    figure, (ax,) = panels(1)
    names = sorted({row.mechanism for row in rows} - {NO_NOISE})
    for colour, mechanism in zip(COLOURS, names, strict=False):
        own = [row for row in rows if row.mechanism == mechanism]
        epsilons = sorted({row.epsilon for row in own})
        means = [mean(row.metric for row in own if row.epsilon == e) for e in epsilons]
        ax.plot(epsilons, means, "-", color=colour, label=mechanism)
        ax.plot([r.epsilon for r in own], [r.metric for r in own], ".", color=colour, alpha=0.6)
    clean = [row.metric for row in rows if row.mechanism == NO_NOISE]
    if clean:
        ax.axhline(mean(clean), color=MUTED, linestyle="--", linewidth=1.2, label="no noise")
    if names:
        ax.set_xscale("log", base=2)
        ticks = sorted({row.epsilon for row in rows if row.mechanism != NO_NOISE})
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    label(ax, title=f"{name}: what privacy costs", x="epsilon of each record", y="metric, held out")
    legend(ax)
    return save(figure, path)
