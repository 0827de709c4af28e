"""Loss against rounds over sigma beside the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedlora.report.figure import COLOURS, label, legend, panels, round_axis, save
from simulations.studies.cascade.trend import Curve


def draw(curves: Sequence[Curve], start: float, path: Path, name: str) -> Path:
    """Draw measured curves as lines with dots and predicted ones dashed."""
    figure, (ax,) = panels(1)
    clean = next(curve for curve in curves if curve.sigma == 0)
    rounds = list(range(1, len(clean.losses) + 1))
    for colour, curve in zip(COLOURS, curves, strict=False):
        shown = f"sigma {curve.sigma:g}" if curve.sigma else "no noise"
        ax.plot(rounds, curve.losses, "o-", color=colour, markersize=4, label=shown)
        if curve.sigma:
            ax.plot(rounds, curve.predicted(clean, start), "--", color=colour, linewidth=1.2)
    round_axis(ax, rounds)
    label(ax, title=f"{name}: measured (line), predicted (dashed)", x="round", y="loss in nats")
    legend(ax, columns=2)
    return save(figure, path)
