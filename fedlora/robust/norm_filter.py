"""The mean over those clients whose gradient is not out of proportion."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlora.checks import number
from fedlora.robust.base import Block, RobustAverage, typical_squares


class NormFilter(RobustAverage):
    """Leaves out who has a larger norm than others have on the same components.

    A client's norm is held against the root of the sum of the medians, over clients, of the squared
    norm of each component that it trains, so that a low rank does not make a norm look small. Those
    who stay are averaged by their samples: without a hostile client this is the plain mean. It
    stops what is huge; a flipped gradient of usual size counts as one client among all. Clients
    whose data differ may all be out of proportion: a component that nobody would be left for has
    all but the ``hostile`` who are furthest out.

    Parameters
    ----------
    hostile
        How many clients may be hostile.
    factor
        Largest norm over the typical one.
    """

    def __init__(self, hostile: int, factor: float = 2.0) -> None:
        super().__init__(hostile)
        self.factor = number("robust.options.factor", factor, 1.0, 1e12)

    def average(self, blocks: Sequence[Block], weights: torch.Tensor) -> list[torch.Tensor]:
        """See ``RobustAverage``."""
        excess = self.excess(blocks)
        stays = excess <= self.factor
        nearer = torch.ones_like(stays)
        nearer[excess.argsort(descending=True, stable=True)[: self.hostile]] = False
        means = []
        for block in blocks:
            kept = block.present & stays[:, None]
            kept = torch.where(kept.any(0), kept, block.present & nearer[:, None])
            share = kept * weights[:, None].to(block.values.device)
            share = share / share.sum(0).clamp_min(torch.finfo(share.dtype).tiny)
            means.append(torch.einsum("kc,kcd->cd", share, block.values))
        return means

    def excess(self, blocks: Sequence[Block]) -> torch.Tensor:
        """Return each client's norm over the typical norm of its components, shape (clients,).

        One whose square overflows is infinitely far out.
        """
        own = torch.zeros(len(blocks[0].values), dtype=torch.float64)
        typical = torch.zeros_like(own)
        for block in blocks:
            squares, median = typical_squares(block)
            own += squares.sum(1).cpu()
            typical += (block.present * median).sum(1).cpu()
        ratio = (own / typical).sqrt().nan_to_num(torch.inf)
        return torch.where(own == 0, 0.0, ratio).to(blocks[0].values.device)
