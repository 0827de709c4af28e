"""What robust averages cost."""

from __future__ import annotations

from collections.abc import Mapping

from simulations.bench.beside.runs import beside, small_load
from simulations.bench.contest import SPLIT
from simulations.bench.context import Context, Figure, Tick

AVERAGES: Mapping[str, list[str]] = {
    "median": ["robust.average=median"],
    "trimmed_mean": ["robust.average=trimmed_mean"],
    "norm_filter": ["robust.average=norm_filter"],
    "median_with_momentum": ["robust.average=median", "robust.momentum=0.9"],
}


def robust_averages(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Compare a step with each robust average with one of the mean."""
    contest = beside(context.settings, small_load(context, model), tick, [], AVERAGES)
    return [Figure("mean", contest.median_seconds(SPLIT), "s/step")] + [
        Figure(
            f"{name}_to_mean",
            contest.speed_ratio(SPLIT, name),
            "ratio",
            None,
            None,
            *contest.ratio_quartiles(SPLIT, name),
        )
        for name in AVERAGES
    ]
