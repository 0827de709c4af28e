"""The largest ranks that a number of bits pays for."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from fedlora.errors import FedloraError
from fedlora.ranks.space import RankSpace, RankVector

Integers = npt.NDArray[np.int64]

GOLDEN_RATIO = (np.sqrt(5) - 1) / 2


def fit_budget(
    space: RankSpace, budget_bits: float | None, weights: ArrayLike | None = None
) -> RankVector:
    """Return ranks in proportion to weights that use a budget up.

    Ranks are given one at a time to the projection with the largest weight / rank (D'Hondt's rule:
    ranks are proportional to the weights as closely as whole numbers allow). What no longer fits
    is passed over, so that in the end not one more rank of any projection fits. With equal
    weights this is the largest uniform rank plus single ranks spread evenly over the depth.

    Parameters
    ----------
    space
        The projections and their cost.
    budget_bits
        Most bits the ranks may take; ``None`` for no limit.
    weights
        A number >= 0 for each projection; equal if left out.

    Returns
    -------
    RankVector
        Ranks of at most ``budget_bits`` bits; r_min everywhere if not even that fits.

    Raises
    ------
    FedloraError
        When the weights are not finite numbers >= 0, one for each projection.
    """
    if budget_bits is None:
        return space.uniform(space.r_max)
    shares = np.ones(len(space)) if weights is None else np.asarray(weights, dtype=float)
    if shares.shape != (len(space),) or not np.all(np.isfinite(shares) & (shares >= 0)):
        raise FedloraError(
            f"weights {weights!r} do not fit; give {len(space)} finite numbers >= 0, one for each "
            "projection"
        )

    takers, used, unit_bits = _order(space, shares.tobytes())
    left = budget_bits - space.r_min * int(unit_bits.sum())
    # All up to the first that does not fit are taken at once, the few after it one at a time.
    fitting = int(np.searchsorted(used, left, side="right"))
    ranks = space.r_min + np.bincount(takers[:fitting], minlength=len(space))
    left -= int(unit_bits[takers[:fitting]].sum())
    for taker in takers[fitting:]:
        if left < unit_bits.min():
            break
        if unit_bits[taker] <= left:
            ranks[taker] += 1
            left -= int(unit_bits[taker])
    return space.vector(ranks)


# Many clients share their weights, and sorting is most of the work.
@lru_cache(maxsize=64)
def _order(space: RankSpace, weights: bytes) -> tuple[Integers, Integers, Integers]:
    """Return who takes the next rank, the bits used up to there, and each projection's unit."""
    shares = np.frombuffer(weights, dtype=float)
    unit_bits = space.bits_per_parameter * np.array(space.unit_parameters, dtype=np.int64)
    candidate_ranks = np.arange(space.r_min + 1, space.r_max + 1)
    quotient = shares[:, None] / candidate_ranks
    # Equal quotients are taken in golden-ratio order, which is spread evenly over the depth.
    position = (np.arange(len(space)) * GOLDEN_RATIO % 1)[:, None] + candidate_ranks
    order = np.lexsort((position.ravel(), -quotient.ravel()))
    takers = order // len(candidate_ranks) if len(candidate_ranks) else order
    return takers, np.cumsum(unit_bits[takers]), unit_bits
