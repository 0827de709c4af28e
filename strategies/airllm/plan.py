"""Plans: what the diffusion makes for every projection, and the ranks that follow from it.

A plan has three entries in [-1, 1] for each projection. The first is the share of the client's even
budget that the projection gets: -1 is nothing, 0 as much as an even spread would give it, 1 twice
as much. The second says where between the rank that clients have, on average, and the largest that
the channels have carried so far the projection is trained. The third is a vote: an adapter is sent
if the mean over the projections is above 0. A vote of its own keeps "perhaps" from meaning "send
half", which would replace a whole adapter by a poor one. Ranks that are decoded use what is to be
spent to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora.ranks import RankSpace, RankVector, fit_budget

Array = NDArray[np.float64]

SMALLEST_SHARE = 0.5
"""Least part of the budget that is spent on an adapter that is sent."""

TILT_STEP = 0.25
"""A projection's share relative to the others', and the whole amount, are multiples of this."""

_SLANT = 0.5
_STEEPNESS = 3.0
"""How soon a vote is unanimous."""


def draft(latent: torch.Tensor, projections: torch.Tensor) -> torch.Tensor:
    """Return the plan that a latent stands for before any reward has refined it.

    The denoiser is trained to make these first.

    Parameters
    ----------
    latent
        Entries in [-1, 1]: vote (above 0 an adapter is sent), amount (-1 half of the budget, 1 all
        of it), training (-1 as delivered, 1 at the largest rank seen), slant towards wide
        projections, slant towards the deep ones; shape (clients, 5).
    projections
        Features, shape (clients, projections, 4) or (projections, 4).
    """
    vote, amount, train, wide, deep = (latent[:, None, i] for i in range(5))
    width = (projections[..., 0] > 0.1).float() * 2 - 1
    share = _part(amount) * (1 + _SLANT * (wide * width + deep * projections[..., 2]))
    votes = (_STEEPNESS * vote).expand_as(share)
    return torch.stack([share - 1, train.expand_as(share), votes], dim=-1).clamp(-1, 1)


def drafted_parts(latents: Array) -> Array:
    """Return the part of each client's budget that the draft of its latent spends, 0 for none.

    Parameters
    ----------
    latents
        Shape (clients, 5), without slants.
    """
    parts = np.clip(_rounded(_part(latents[:, 1])), SMALLEST_SHARE, 1.0)
    return np.where(latents[:, 0] > 0, parts, 0.0)


def delivered_ranks(plan: Array, space: RankSpace, budget_bits: float | None) -> RankVector:
    """Return the ranks to deliver: the plan's, moved to the nearest ones that the budget pays.

    Parameters
    ----------
    plan
        Shape (projections, 3).
    space
        The ranks to choose from.
    budget_bits
        Bits that can be delivered; None for no limit.
    """
    if plan[:, 2].mean() <= 0:
        return space.uniform(space.r_min)
    share = np.clip(plan[:, 0], -1, 1) + 1
    units = np.array(space.unit_parameters)
    mean = max(float(share @ units) / float(units.sum()), 1e-9)
    # What differs by less than a step is the diffusion's noise. Ranks that scatter from round to
    # round and from client to client leave components half trained, and bits unspent.
    spent = float(np.clip(_rounded(mean), SMALLEST_SHARE, 1.0))
    largest = float(space.bits(space.uniform(space.r_max)))
    budget = largest if budget_bits is None else min(budget_bits, largest)
    return fit_budget(space, spent * budget, _rounded(share / mean))


def _part(amount: Any) -> Any:
    return SMALLEST_SHARE + (1 - SMALLEST_SHARE) * (amount + 1) / 2


def _rounded(share: Any) -> Any:
    return np.rint(share / TILT_STEP) * TILT_STEP


def trained_ranks(plan: Array, had: Array, largest: float, space: RankSpace) -> RankVector:
    """Return the ranks to train with.

    Parameters
    ----------
    plan
        Second entries of plans, shape (projections,).
    had
        Rank of each projection in the adapters that clients will have, not rounded.
    largest
        Largest uniform rank that a budget has paid for so far.
    space
        The ranks to choose from.
    """
    above = np.maximum(largest - had, 0.0)
    ranks = np.rint(had + (np.clip(plan, -1, 1) + 1) / 2 * above)
    return RankVector(np.clip(ranks, max(space.r_min, 1), space.r_max).astype(int).tolist())
