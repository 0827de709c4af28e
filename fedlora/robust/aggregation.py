"""What a robust average is: the clients' gradients in, one gradient out.

Gradients come as blocks, one for each matrix, whose rows are components. A client that has no
gradient of a component, because its rank is lower, does not count there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedlora.config import RobustConfig
from fedlora.errors import FedloraError
from fedlora.registry import resolve


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


def create_average(config: RobustConfig) -> RobustAverage | None:
    """Return the average that a scenario names, or None for the mean over samples.

    Raises
    ------
    FedloraError
        When it is unknown, is no robust average, or does not take its options.
    """
    if not config.enabled:
        return None
    kind = resolve("averages", config.average, RobustAverage, besides=["mean"])
    options = dict(config.options)
    try:
        average: RobustAverage = kind(config.hostile, **options)
    except TypeError as error:
        raise FedloraError(
            f"robust.average {config.average!r} does not take the options {options} ({error}); "
            "mend robust.options"
        ) from None
    if not (config.mix and average.mixes):
        return average
    from fedlora.robust.mixing import Mixed

    return Mixed(average)


def robust_mean(
    average: RobustAverage, blocks: Sequence[Block], weights: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Average what enough clients have, and check what comes of it.

    Returns
    -------
    tuple
        For each block its average, shape (components, width), and which components have one, bool,
        shape (components,).

    Raises
    ------
    FedloraError
        When a plug-in returns other shapes, or NaN or infinity.
    """
    kept = protect(blocks, average.hostile)
    means = average.average(kept, weights)
    expected = [block.values.shape[1:] for block in kept]
    name = f"{type(average).__module__}:{type(average).__name__}"
    if [mean.shape for mean in means] != expected:
        raise FedloraError(
            f"the average {name} returned shapes {[tuple(m.shape) for m in means][:3]}, not "
            f"{[tuple(e) for e in expected][:3]}; return (components, width) for each block"
        )
    if not all(bool(mean.isfinite().all()) for mean in means):
        raise FedloraError(f"the average {name} returned NaN or infinity; mend it")
    return means, [block.present.any(0) for block in kept]


def protect(blocks: Sequence[Block], hostile: int) -> list[Block]:
    """Leave out what is not finite, then every component with too few clients to outvote.

    Among 2 ``hostile`` clients or fewer no average can tell who is honest.
    """
    finite = torch.stack([block.values.isfinite().flatten(1).all(1) for block in blocks]).all(0)
    kept = []
    for block in blocks:
        present = block.present & finite[:, None]
        present = present & (present.sum(0) > 2 * hostile)
        kept.append(Block(torch.where(present[:, :, None], block.values, 0.0), present))
    return kept


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
