"""What a channel forecast begins with: recurrences, or the last step."""

from __future__ import annotations

import torch

from fedlora.config import ForecastConfig
from fedlora.tasks.forecast.covariance import go_on_together
from fedlora.tasks.forecast.prony import go_on

_LONG = 8


def recurrence(taps: torch.Tensor, config: ForecastConfig) -> torch.Tensor:
    """Return what ``task.forecast.base`` predicts of complex delays (..., delays, steps).

    Returns
    -------
    torch.Tensor
        Shape (..., delays, horizon).
    """
    if config.base == "last":
        return _repeated(taps[..., -1:], config)
    if config.base == "pad":
        return go_on(taps, config.base_order, config.horizon)
    return go_on_together(taps, config.base_order, config.horizon, neighbours=1)


def recurrences(taps: torch.Tensor, config: ForecastConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return that, and what a second one predicts that errs otherwise.

    Beside the last step it is the mean of the known ones, which noise disturbs less and movement
    more; beside PAD a recurrence of a single step; beside ``covariance`` a longer one that more
    neighbours have in common, which noise disturbs less and different paths more.
    """
    first = recurrence(taps, config)
    if config.base == "last":
        return first, _repeated(taps.mean(-1, keepdim=True), config)
    if config.base == "pad":
        return first, go_on(taps, 1, config.horizon)
    order = min(_LONG, config.history // 2)
    return first, go_on_together(taps, order, config.horizon, neighbours=3)


def _repeated(step: torch.Tensor, config: ForecastConfig) -> torch.Tensor:
    """Return one step (..., 1) for all steps ahead."""
    return step.expand(*step.shape[:-1], config.horizon)
