"""Byzantine-robust aggregation: making the average that a scenario names, and guarding it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlora.blame import blaming
from fedlora.config import RobustConfig
from fedlora.errors import FedloraError, shown
from fedlora.registry import make, resolve
from fedlora.robust.base import Block, RobustAverage
from fedlora.robust.mixing import Mixed


def create_average(config: RobustConfig) -> RobustAverage | None:
    """Return the average that a scenario names, or None for the mean over samples.

    Raises
    ------
    FedloraError
        When it is unknown, is no robust average, or does not take its options.
    """
    if not config.enabled:
        if config.options:
            raise FedloraError(
                f"robust.options is {shown(dict(config.options))}, but robust.average is mean, "
                "which has none; leave them out, or name the average that they are for"
            )
        return None
    kind = resolve("averages", config.average, RobustAverage, besides=["mean"])
    average: RobustAverage = make(kind, "robust.options", config.options, config.hostile)
    if getattr(average, "hostile", None) != config.hostile:
        raise FedloraError(
            f"robust.average {shown(config.average)} has lost robust.hostile in __init__(); let "
            "that call super().__init__(hostile)"
        )
    return Mixed(average) if config.mix and average.mixes else average


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
    own = average.then if isinstance(average, Mixed) else average
    name = f"{type(own).__module__}:{type(own).__name__}"
    with blaming(f"the average {name}", type(own)):
        means = average.average(kept, weights)
    expected = [block.values.shape[1:] for block in kept]
    if not isinstance(means, list) or not all(isinstance(m, torch.Tensor) for m in means):
        raise FedloraError(
            f"the average {name} returned a {type(means).__name__}; return a list with a tensor "
            "(components, width) for each block"
        )
    if [mean.shape for mean in means] != expected:
        raise FedloraError(
            f"the average {name} returned shapes {[tuple(m.shape) for m in means][:3]}, not "
            f"{[tuple(e) for e in expected][:3]}; return (components, width) for each block"
        )
    if odd := [str(mean.dtype) for mean in means if not mean.is_floating_point()]:
        raise FedloraError(f"the average {name} returned {odd[0]}; return floats, as are given")
    if not all(bool(mean.isfinite().all()) for mean in means):
        raise FedloraError(f"the average {name} returned NaN or infinity; mend it")
    means = [mean.to(block.values) for mean, block in zip(means, kept, strict=True)]
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
