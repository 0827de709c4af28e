"""What a Byzantine-robust aggregation rule is: the clients' gradients in, one gradient out.

A hostile client is a Byzantine one: it may send anything.

Gradients come as blocks, one for each matrix, whose rows are components. A client that has no
gradient of a component, because its rank is lower, does not count there.

===========  =========================================
``clients``  n
``hostile``  f, the most of them that may be Byzantine
===========  =========================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Block:
    """One matrix's gradients.

    Attributes
    ----------
    values
        Mean gradient over each client's own samples, fp32, shape (clients, components, width);
        finite, and zero where a client is not present.
    present
        Which clients have a gradient of which component, bool, shape (clients, components).
    """

    values: torch.Tensor
    present: torch.Tensor


class RobustAverage(ABC):
    """An average over clients of which some may be hostile.

    Parameters
    ----------
    hostile
        How many may be.

    Attributes
    ----------
    mixes
        Whether ``robust.mix`` concerns it: it looks at each coordinate alone.
    """

    mixes = False

    def __init__(self, hostile: int) -> None:
        self.hostile = hostile

    @abstractmethod
    def average(self, blocks: Sequence[Block], weights: torch.Tensor) -> list[torch.Tensor]:
        """Average blocks over clients.

        Parameters
        ----------
        blocks
            All blocks of one step, with the clients in the same order. Each component has either
            no client or at least 2 ``hostile`` + 1.
        weights
            Samples or target tokens of each client, as it says, shape (clients,).

        Returns
        -------
        list of torch.Tensor
            For each block shape (components, width), zero where no client is present.
        """


def typical_squares(block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each client's squared norm by component, and its median over the clients present.

    Shapes (clients, components) and (components,). A gradient whose square overflows is infinite.
    """
    squares = block.values.square().sum(2)
    return squares, masked_median(squares, block.present)


def masked_median(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return the median over the first axis of what is present; the mean of two middle ones.

    Parameters
    ----------
    values
        Shape (clients, ...).
    present
        Bool, of the same shape or one that broadcasts to it.
    """
    ordered = torch.where(present, values, torch.inf).sort(0).values
    count = present.sum(0, keepdim=True).expand(1, *values.shape[1:])
    last = (count - 1).clamp_min(0)
    low, high = ordered.gather(0, last // 2)[0], ordered.gather(0, (last + 1) // 2)[0]
    return torch.where(count[0] > 0, low + (high - low) / 2, 0.0)
