"""Plans: what the diffusion makes for every projection, and the ranks that follow from it.

A plan has two entries in [-1, 1] for each projection. The first is the share of the client's even
budget that the projection gets: -1 is nothing, 0 as much as an even spread would give it, 1 twice
as much. The second says where between the delivered rank and the largest rank that the channels
have carried so far the projection is trained. Ranks that are decoded use what is to be spent to the
last bit.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora.ranks import RankSpace, RankVector, fit_budget

Array = NDArray[np.float64]

SMALLEST_SHARE = 0.5
"""A smaller part of the budget is not worth replacing an adapter for, so that none is sent."""

SHARE_STEP = 0.25
"""Shares are rounded to multiples of this."""

_SLANT = 0.5
_STEEPNESS = 3.0


def draft(latent: torch.Tensor, projections: torch.Tensor) -> torch.Tensor:
    """Return the plan that a latent stands for before any reward has refined it.

    The denoiser is trained to make these first.

    Parameters
    ----------
    latent
        Entries in [-1, 1]: amount (below 0 nothing, from 1/6 on the whole budget), training (-1 as
        delivered, 1 at the largest rank seen), slant towards wide projections, slant towards the
        deep ones; shape (clients, 4).
    projections
        Features, shape (clients, projections, 4) or (projections, 4).
    """
    amount, train, wide, deep = (latent[:, None, i] for i in range(4))
    width = (projections[..., 0] > 0.1).float() * 2 - 1
    share = (SMALLEST_SHARE + amount).clamp(0, 1) * (
        1 + _SLANT * (wide * width + deep * projections[..., 2])
    )
    return torch.stack([share - 1, train.expand_as(share)], dim=-1).clamp(-1, 1)


def delivered_ranks(plan: Array, space: RankSpace, budget_bits: float | None) -> RankVector:
    """Return the ranks to deliver: the plan's, moved to the nearest ones that the budget pays.

    Parameters
    ----------
    plan
        First entries of a plan, shape (projections,).
    space
        The ranks to choose from.
    budget_bits
        Bits that can be delivered; None for no limit.
    """
    # Shares that differ by less are the diffusion's noise. Ranks that scatter from round to round
    # would leave components half trained.
    share = np.rint((np.clip(plan, -1, 1) + 1) / SHARE_STEP) * SHARE_STEP
    units = np.array(space.unit_parameters)
    spent = min(float(share @ units) / float(units.sum()), 1.0)
    if spent < SMALLEST_SHARE:
        return space.uniform(space.r_min)
    largest = float(space.bits(space.uniform(space.r_max)))
    budget = largest if budget_bits is None else min(budget_bits, largest)
    return fit_budget(space, spent * budget, share)


def trained_ranks(plan: Array, delivered: Array, largest: float, space: RankSpace) -> RankVector:
    """Return the ranks to train with.

    Parameters
    ----------
    plan
        Second entries of a plan, shape (projections,).
    delivered
        Rank of each projection in the adapter that the client will have, not rounded.
    largest
        Largest uniform rank that a budget has paid for so far.
    space
        The ranks to choose from.
    """
    above = np.maximum(largest - delivered, 0.0)
    ranks = np.rint(delivered + (np.clip(plan, -1, 1) + 1) / 2 * above)
    return RankVector(np.clip(ranks, max(space.r_min, 1), space.r_max).astype(int).tolist())
