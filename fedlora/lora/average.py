"""Rank-aware averaging: a component is averaged over the clients that trained it.

With prefix masks, component j of a projection gets gradient only from clients with a rank above
j. Dividing by all clients' samples would dilute high components, so component j is divided by the
samples of its own contributors (RBLA, arXiv 2408.08699, applied to gradients at a common A and B).
Where all clients have the same rank this is the aggregation of FedSGD, which is FedAvg (McMahan et
al. 2017) with one local step: A and B are averaged as gradients, so no product of means errs.

===============  ==========================================================
``A``, ``B``     LoRA factors, shapes (r_max, d_in) and (d_out, r_max)
``r``            r_k, a client's rank at a projection
``weight``       n_k, its samples or target tokens
``count``        sum of n_k over the clients k with r_k > j, by component j
===============  ==========================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlora.lora.layers import LoraProjection


class ContributionCount:
    """Adds up, for each component of each projection, the weight of those who trained it.

    Parameters
    ----------
    projections
        Number of projections.
    r_max
        Components of each.
    """

    def __init__(self, projections: int, r_max: int) -> None:
        self.weight = torch.zeros(projections, r_max)

    def add(self, ranks: Sequence[int], weight: float) -> None:
        """Count one client's batch: its ranks, and its samples or target tokens."""
        r = torch.tensor(ranks)[:, None]
        self.weight += weight * (torch.arange(self.weight.shape[1]) < r)


def average_gradients(
    projections: Sequence[LoraProjection], count: ContributionCount
) -> torch.Tensor:
    """Divide the summed gradients by their contributors' weight, in place.

    Parameters
    ----------
    projections
        Their ``A.grad`` and ``B.grad`` hold sums over all clients.
    count
        Weight of the contributors to each component.

    Returns
    -------
    torch.Tensor
        Which components anybody trained, bool, shape (projections, r_max).
    """
    active = count.weight > 0
    divisor = torch.where(active, count.weight, 1.0)
    for projection, contributors in zip(projections, divisor, strict=True):
        weight = contributors.to(projection.A.device)
        if projection.A.grad is not None and projection.B.grad is not None:
            projection.A.grad.div_(weight[:, None])
            projection.B.grad.div_(weight)
    return active
