"""The client's ends of a forecast: what makes vectors of a history, and numbers of vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from fedlora.config import ForecastConfig
from fedlora.tasks.forecast.lift import Lift
from fedlora.tasks.forecast.recurrences import recurrence

M = TypeVar("M", bound=nn.Module)


def seeded(make: Callable[[], M], seed: int) -> M:
    """Return a module with weights that follow from a seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


class LinearFront(nn.Module):
    """One linear map from a patch of time steps to a vector.

    Parameters
    ----------
    config
        Patch and features.
    width
        Numbers of a vector.
    """

    def __init__(self, config: ForecastConfig, width: int) -> None:
        super().__init__()
        self.lift = Lift(config.width, width)
        self.project = nn.Linear(config.patch * config.features, self.lift.own)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Map patches (samples, places, patch * features) to vectors (samples, places, width)."""
        return self.lift.up(self.project(patches))


class ChannelFront(nn.Module):
    """Two convolutional branches over a channel response, then a linear map of each patch.

    LLM4CP (Liu et al. 2024, arXiv 2406.14440, section III-B) has such branches over frequency and
    delay with channel attention. Here a patch becomes one place, where theirs keep all time steps,
    real and imaginary parts stay apart, and all statistics are of the sample alone.

    Parameters
    ----------
    config
        Patch and features: real parts of all subcarriers, then imaginary parts.
    width
        Numbers of a vector.
    """

    def __init__(self, config: ForecastConfig, width: int) -> None:
        super().__init__()
        self._patch = config.patch
        self.frequency, self.delay = ChannelBranch(config), ChannelBranch(config)
        self.lift = Lift(config.width, width)
        self.project = nn.Linear(config.patch * config.features, self.lift.own)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Map patches (samples, places, patch * features) to vectors (samples, places, width)."""
        samples, places, numbers = patches.shape
        steps = patches.reshape(samples, places * self._patch, 2, -1)
        real, imaginary = steps.unbind(2)
        taps = torch.fft.ifft(torch.complex(real, imaginary), dim=-1, norm="ortho")
        found = self.frequency(torch.stack([real, imaginary], 1))
        found = found + self.delay(torch.stack([taps.real, taps.imag], 1))
        return self.lift.up(self.project(found.transpose(1, 2).reshape(samples, places, numbers)))


class ChannelBranch(nn.Module):
    """Convolutions over time and subcarriers (or delays) with channel attention.

    Parameters
    ----------
    config
        Channels and blocks.
    """

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, config.channels, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(config.channels) for _ in range(config.blocks))
        self.leave = nn.Conv2d(config.channels, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map real and imaginary parts (samples, 2, steps, subcarriers) to the same shape."""
        found = self.enter(x)
        for block in self.blocks:
            found = block(found)
        result: torch.Tensor = x + self.leave(found)
        return result


class _Block(nn.Module):
    """Two convolutions, channel attention, and what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.second(torch.relu(self.first(x)))
        weight = torch.sigmoid(self.attention(found.mean((2, 3))))
        result: torch.Tensor = x + found * weight[:, :, None, None]
        return result


class ForecastHead(nn.Module):
    """Projects each place to its time steps, and mixes these and the history over time.

    The map of the history itself, which begins at 0, is a linear prediction that needs no model.
    With ``task.forecast.base`` all of it corrects what that predicts.

    Parameters
    ----------
    config
        History, horizon, patch and features.
    width
        Numbers of a vector.
    """

    def __init__(self, config: ForecastConfig, width: int) -> None:
        super().__init__()
        self._steps = (config.history, config.features)
        self.lift = Lift(config.width, width)
        self.project = nn.Linear(self.lift.own, config.patch * config.features)
        self.mix = nn.Linear(config.history, config.horizon)
        self.history = nn.Linear(config.history, config.horizon, bias=False)
        nn.init.zeros_(self.history.weight)
        self._base = config if config.base != "none" else None
        if self._base:  # training begins with what is corrected
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)
            self.gain = nn.Parameter(torch.ones(config.horizon, 1))

    def forward(self, z: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Predict normalised numbers.

        Parameters
        ----------
        z
            Vectors, shape (samples, places, width).
        history
            Normalised, shape (samples, history, features).

        Returns
        -------
        torch.Tensor
            Shape (samples, horizon, features).
        """
        steps = self.project(self.lift.down(z)).reshape(len(z), *self._steps)
        mixed = self.mix(steps.transpose(1, 2)) + self.history(history.transpose(1, 2))
        predicted: torch.Tensor = mixed.transpose(1, 2)
        if self._base:
            predicted = predicted + self.gain * _goes_on(history, self._base)
        return predicted


@torch.no_grad()
def _goes_on(history: torch.Tensor, config: ForecastConfig) -> torch.Tensor:
    """Return what ``base`` predicts of histories (samples, steps, features)."""
    if config.base == "last":  # the same over delays and over features, which may be real
        return history[:, -1:].expand(-1, config.horizon, -1)
    real, imaginary = history.double().chunk(2, -1)
    taps = torch.fft.ifft(torch.complex(real, imaginary), dim=-1).transpose(1, 2)
    told = torch.fft.fft(recurrence(taps, config).transpose(1, 2), dim=-1)
    return torch.cat([told.real, told.imag], -1).float()
