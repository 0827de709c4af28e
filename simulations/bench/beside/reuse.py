"""What kept blocks save (``compute.reuse_blocks``)."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.ranks import ClientReport, RankDecision, RankSpace, RankStrategy
from simulations.bench.beside.runs import beside, small_load
from simulations.bench.contest import SPLIT
from simulations.bench.context import Context, Figure, Tick

REUSED_AT_LEAST = 1.3
_ANEW, _ALL = "computed_anew", "all_blocks_trained"


class UpperHalf(RankStrategy):
    """Everybody has the largest rank in the upper half of the blocks, and 0 below."""

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """See ``RankStrategy``."""
        layers = [projection.layer for projection in space.projections]
        half = (max(layers) + 1) // 2
        ranks = [space.r_max if layer >= half else 0 for layer in layers]
        return {client: RankDecision(ranks) for client in clients}


def reused_blocks(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Compare steps from the second epoch on with those that compute the lower half each time.

    Every client has one batch of rows, so that an epoch is a step and the warm-up the first.
    """
    half = f"ranks.strategy={__name__}:UpperHalf"
    contest = beside(
        context.settings,
        small_load(context, model),
        tick,
        [half, "compute.reuse_blocks=true"],
        {_ANEW: [half], _ALL: []},
        other_losses={_ALL},  # another adapter
    )
    figures = [Figure("kept", contest.median_seconds(SPLIT), "s/step")]
    for name, target in ((_ANEW, REUSED_AT_LEAST), (_ALL, None)):
        ratio, spread = contest.speed_ratio(SPLIT, name), contest.ratio_quartiles(SPLIT, name)
        figures.append(Figure(f"kept_to_{name}", ratio, "ratio", target, None, *spread))
    return [*figures, Figure("loss_difference", contest.loss_difference, "relative", at_most=1e-4)]
