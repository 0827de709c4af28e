"""The client's ends of a channel forecast whose places are delays, not patches of time."""

from __future__ import annotations

import torch
from torch import nn

from fedlora.config import ForecastConfig
from fedlora.tasks.forecast.lift import Lift
from fedlora.tasks.forecast.recurrences import recurrences

_HIDDEN = 32
_CONTEXT = 8
_CANDIDATES = 4
_LEAST = 1e-6


def delays_of(numbers: torch.Tensor) -> torch.Tensor:
    """Return delays (samples, delays, steps) of responses (samples, steps, features)."""
    real, imaginary = numbers.chunk(2, -1)
    taps = torch.fft.ifft(torch.complex(real, imaginary), dim=-1, norm="ortho")
    turned: torch.Tensor = taps.transpose(1, 2)
    return turned


def responses_of(taps: torch.Tensor) -> torch.Tensor:
    """Return responses (samples, steps, features) of delays (samples, delays, steps)."""
    found = torch.fft.fft(taps.transpose(1, 2), dim=-1, norm="ortho")
    return torch.cat([found.real, found.imag], -1)


class DelayFeatures(nn.Module):
    """What both ends read of each delay: its past turned to phase 0 and scaled to power 1.

    Beside it stand the logarithm of the power that was divided by, and how far the recurrence goes
    from the last step. Nothing changes when all of a channel is turned by a phase.

    Parameters
    ----------
    config
        History, and the recurrences' order.
    """

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__()
        self._config = config
        self.numbers = 2 * config.history + 2

    @torch.no_grad()
    def forward(self, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map histories (samples, steps, features) to features and candidates.

        Returns
        -------
        tuple of torch.Tensor
            Features of each delay, shape (samples, delays, numbers), and what can be weighed,
            complex, shape (samples, delays, candidates, horizon): predictions by the recurrence
            asked for and by another, the last value, and the number that the past was divided by,
            so that the head may also tell steps of its own.
        """
        taps = delays_of(history)
        last = taps[..., -1:]
        wide = taps.to(torch.complex128)
        told = [ahead.to(taps.dtype) for ahead in recurrences(wide, self._config)]
        power = taps.abs().square().mean(-1, keepdim=True).sqrt() + _LEAST
        unit = power * last.where(last != 0, 1.0) / last.where(last != 0, 1.0).abs()
        turned = taps / unit
        moved = (told[0] - last).abs().mean(-1, keepdim=True) / power
        features = torch.cat([turned.real, turned.imag, power.log(), moved], -1)
        known = [*told, last.expand_as(told[0]), unit.expand_as(told[0])]
        return features, torch.stack(known, 2)


class DelayFront(nn.Module):
    """One small network over each delay, then a linear map of the delays that make a place.

    Places go from late delays to early ones: those have little but noise, so that a causal model
    knows how much of it there is when it comes to the strong ones.

    Parameters
    ----------
    config
        Delays of a place (``patch``), history and features.
    width
        Numbers of a vector of the model.
    """

    def __init__(self, config: ForecastConfig, width: int) -> None:
        super().__init__()
        self._steps = (config.history, config.features)
        self.features, self.lift = DelayFeatures(config), Lift(config.width, width)
        self.each = nn.Linear(self.features.numbers, _HIDDEN)
        self.project = nn.Linear(config.patch * _HIDDEN, self.lift.own)
        self.positions = nn.Parameter(torch.zeros(config.places, self.lift.own))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Map histories, cut anyhow to (samples, places, numbers), to vectors."""
        samples, places, _ = patches.shape
        features, _ = self.features(patches.reshape(samples, *self._steps))
        found = torch.nn.functional.gelu(self.each(features)).reshape(samples, places, -1)
        return self.lift.up((self.project(found) + self.positions).flip(1))


class DelayHead(nn.Module):
    """Weighs, for each delay and step ahead, what recurrences predict, and adds to it.

    Weights are complex and follow from the delay's own features and from what the model tells of
    its place. They begin at the recurrence of ``base`` alone. A channel that is
    turned by a phase is predicted turned by it, exactly.

    Parameters
    ----------
    config
        Horizon, delays of a place and features.
    width
        Numbers of a vector of the model.
    """

    def __init__(self, config: ForecastConfig, width: int) -> None:
        super().__init__()
        self._shape = (config.features // 2, _CANDIDATES, config.horizon, 2)
        self.features, self.lift = DelayFeatures(config), Lift(config.width, width)
        self.context = nn.Linear(self.lift.own, config.patch * _CONTEXT)
        self.each = nn.Linear(self.features.numbers + _CONTEXT, _HIDDEN)
        self.weights = nn.Linear(_HIDDEN, _CANDIDATES * config.horizon * 2)
        nn.init.zeros_(self.weights.weight)
        with torch.no_grad():
            start = torch.zeros(_CANDIDATES, config.horizon, 2)
            start[0, :, 0] = 1
            self.weights.bias.copy_(start.flatten())

    def forward(self, z: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Predict normalised numbers; see ``ForecastHead``."""
        samples, (delays, *_) = len(z), self._shape
        features, candidates = self.features(history)
        context = self.context(self.lift.down(z).flip(1)).reshape(samples, delays, _CONTEXT)
        hidden = torch.nn.functional.gelu(self.each(torch.cat([features, context], -1)))
        weights = torch.view_as_complex(self.weights(hidden).reshape(samples, *self._shape))
        return responses_of((weights * candidates).sum(2))
