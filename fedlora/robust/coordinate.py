"""Averages that look at each coordinate alone (Yin et al. 2018, arXiv 1803.01498)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from fedlora.robust.base import Block, RobustAverage, masked_median


class CoordinateAverage(RobustAverage):
    """An average of each coordinate over the clients that are present; each has one vote."""

    mixes = True

    def average(self, blocks: Sequence[Block], weights: torch.Tensor) -> list[torch.Tensor]:
        """See ``RobustAverage``; the weights, which clients state themselves, do not count."""
        del weights
        return [self.of(block) for block in blocks]

    @abstractmethod
    def of(self, block: Block) -> torch.Tensor:
        """Average one block over its clients: shape (components, width)."""


class CoordinateMedian(CoordinateAverage):
    """The median of each coordinate."""

    def of(self, block: Block) -> torch.Tensor:
        """See ``CoordinateAverage``."""
        return masked_median(block.values, block.present[:, :, None])


class TrimmedMean(CoordinateAverage):
    """The mean of each coordinate without its ``hostile`` largest and smallest values."""

    def of(self, block: Block) -> torch.Tensor:
        """See ``CoordinateAverage``."""
        present = block.present[:, :, None]
        ordered = torch.where(present, block.values, torch.inf).sort(0).values
        place = torch.arange(len(ordered))[:, None, None].to(ordered.device)
        count = present.sum(0, keepdim=True)
        kept = (place >= self.hostile) & (place < count - self.hostile)
        total = torch.where(kept, ordered, 0.0).sum(0)
        return total / kept.sum(0).clamp_min(1)
