"""Nearest-neighbour mixing: what makes a coordinate-wise average work on unlike data.

Clients with different labels have different gradients, and the median of each coordinate forgets
what only a few of them know. Allouah et al. (2023, arXiv 2302.01772) replace each client's vector
by the mean over its n - f nearest ones first: honest clients then hardly differ, and a vector that
lies far off is nobody's neighbour.

============  ===============================================
``hostile``   f
``clients``   n; each vector becomes a mean over n - f of them
============  ===============================================
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlora.robust.base import Block, RobustAverage, typical_squares


class Mixed(RobustAverage):
    """Another average, of vectors that have been mixed.

    Parameters
    ----------
    then
        The average that follows.
    """

    def __init__(self, then: RobustAverage) -> None:
        super().__init__(then.hostile)
        self.then = then

    def average(self, blocks: Sequence[Block], weights: torch.Tensor) -> list[torch.Tensor]:
        """See ``RobustAverage``."""
        distances = client_distances(blocks)
        return self.then.average([mix(b, distances, self.hostile) for b in blocks], weights)


def client_distances(blocks: Sequence[Block]) -> torch.Tensor:
    """Return how far apart clients are on the components that both train.

    The sum of squares over these components, over what is typical there, so that pairs with many
    and with few components in common compare.

    Returns
    -------
    torch.Tensor
        Shape (clients, clients), float64; 0 on the diagonal, infinite where nothing is in common.
    """
    clients = len(blocks[0].values)
    apart = torch.zeros(clients, clients, dtype=torch.float64)
    typical = torch.zeros_like(apart)
    for block in blocks:
        squares, median = typical_squares(block)
        both = block.present.float()
        flat = block.values.flatten(1)
        # |a - b|^2 on common components; values are 0 where a client is not present
        own = squares @ both.T
        block_apart = own + own.T - 2 * (flat @ flat.T)
        apart += block_apart.clamp_min(0).cpu()
        typical += ((both * median) @ both.T).cpu()
    distance = (apart / typical).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return distance.fill_diagonal_(0.0)


def mix(block: Block, distances: torch.Tensor, hostile: int) -> Block:
    """Replace each client's components by the mean over its nearest clients that have them.

    Of the n clients that have a component, ``n - hostile`` are its neighbours, itself among them.
    """
    patterns, which = torch.unique(block.present.T, dim=0, return_inverse=True)
    values = torch.zeros_like(block.values)
    for number, pattern in enumerate(patterns):
        columns = which == number
        own = pattern.nonzero().squeeze(1)
        if not len(own):
            continue
        near = distances[own.cpu()][:, own.cpu()].argsort(dim=1, stable=True)
        share = torch.zeros(len(own), len(own))
        share.scatter_(1, near[:, : len(own) - hostile], 1 / (len(own) - hostile))
        part = block.values[own][:, columns]
        values[own[:, None], columns] = torch.tensordot(share.to(part.device), part, 1)
    return Block(values, block.present)
