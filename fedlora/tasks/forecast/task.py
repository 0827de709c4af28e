"""Forecasts of time series: a history goes through the model, the next steps come out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fedlora.config import DataConfig, ForecastConfig, Scenario
from fedlora.split import Checkpoint
from fedlora.tasks.base import RecordError, Sample, Task, TaskLoss
from fedlora.tasks.columns import Record
from fedlora.tasks.errors import ErrorCounts
from fedlora.tasks.forecast.delay_modules import DelayFront, DelayHead
from fedlora.tasks.forecast.modules import ChannelFront, ForecastHead, LinearFront, seeded
from fedlora.tasks.series import VALUES, load_series
from fedlora.tasks.tokenizer import Tokenizer


@dataclass(frozen=True)
class Ahead:
    """What is to be predicted, and the statistics that a prediction is de-normalised with.

    Attributes
    ----------
    steps
        In units of the data, shape (horizon, features).
    mean, scale
        Of the history, shape (features,).
    """

    steps: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor


class Forecast(Task):
    """The next steps of a multivariate series; NMSE.

    Statistics, history and what is to be predicted stay on the client.
    """

    pooled = False
    trains_head = True
    tokens = False

    @classmethod
    def records(
        cls, scenario: Scenario, which: Literal["train", "test"], *, labelled: bool
    ) -> list[Record]:
        """See ``load_series``."""
        del labelled
        return load_series(scenario, which)

    def samples(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, data: DataConfig
    ) -> list[Sample]:
        """Cut each record into windows of history and horizon, one for each port."""
        del tokenizer, data
        config, made = self.config.forecast, []
        stride = config.stride or config.window
        for place, record in enumerate(records):
            values = torch.from_numpy(record[VALUES])
            for start in range(0, values.shape[1] - config.window + 1, stride):
                for window in values[:, start : start + config.window]:
                    made.append(self._sample(window, place))
        return made

    def front(self, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int) -> nn.Module:
        """See ``Task``; in fp32, as it may train."""
        del checkpoint, dtype
        return seeded(lambda: front_module(self.config.forecast, width), seed)

    def embed(self, front: nn.Module, samples: Sequence[Sample]) -> torch.Tensor:
        """See ``Task``; all sequences are of one length."""
        vectors: torch.Tensor = front(_values(samples))
        return vectors.flatten(0, 1)

    def head(self, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int) -> nn.Module:
        """See ``Task``; in fp32, since it trains."""
        del checkpoint, dtype
        return seeded(lambda: head_module(self.config.forecast, width), seed + 1)

    def loss(
        self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample], *, sample_mean: bool
    ) -> TaskLoss:
        """See ``Task``; a sample has one term, so its mean is itself."""
        del sample_mean
        z = z.detach().float().requires_grad_()
        loss = self._losses(self._predict(head, z, samples), samples).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        return TaskLoss(loss.item(), float(len(samples)), z.grad)

    @torch.no_grad()
    def measure(self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample]) -> ErrorCounts:
        """See ``Task``; errors are in units of the data."""
        predicted = self._predict(head, z.float(), samples)
        mean, scale = _statistics(samples)
        wanted = torch.stack([sample.target.steps for sample in samples])
        loss = float(self._losses(predicted, samples).sum())
        return ErrorCounts.of(predicted * scale + mean, wanted, loss)

    def read_counts(self, value: Any) -> ErrorCounts:
        """See ``Task``."""
        return ErrorCounts.from_dict(value)

    def _sample(self, window: torch.Tensor, source: int) -> Sample:
        config = self.config.forecast
        history, steps = window[: config.history], window[config.history :]
        if not bool(steps.any()):
            raise RecordError(
                source,
                f"has {config.horizon} steps to predict that are all 0, of which there is no "
                "relative error; leave it out, or add an offset",
            )
        history = _measured(history, config.history_snr_db)
        mean, scale = _own_statistics(history, config.normalise)
        patches = ((history - mean) / scale).reshape(config.places, -1)
        target = Ahead(steps.clone(), mean, scale)
        return Sample((), target, source, values=patches)

    def _predict(self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
        config, count = self.config.forecast, len(samples)
        history = _values(samples).reshape(count, config.history, config.features)
        predicted: torch.Tensor = head(z.reshape(count, config.places, -1), history)
        return predicted

    def _losses(self, predicted: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
        """Return the loss of each sample."""
        mean, scale = _statistics(samples)
        steps = torch.stack([sample.target.steps for sample in samples])
        error = predicted - (steps - mean) / scale
        if self.config.forecast.loss == "mse":
            return error.square().mean((1, 2))
        return (error * scale).square().sum((1, 2)) / steps.square().sum((1, 2))


def front_module(config: ForecastConfig, width: int) -> nn.Module:
    """Return a front with weights that are drawn, to vectors of so many numbers."""
    made = {"linear": LinearFront, "channel": ChannelFront, "delay": DelayFront}[config.front]
    return made(config, width)


def head_module(config: ForecastConfig, width: int) -> nn.Module:
    """Return the head that goes with that front; see ``front_module``."""
    made = DelayHead if config.front == "delay" else ForecastHead
    return made(config, width)


def _measured(history: torch.Tensor, snr_db: Sequence[float]) -> torch.Tensor:
    """Return a history with white noise at a ratio, or one drawn between two.

    The noise follows from the history's own numbers, so that it is the same wherever and with
    whatever others the sample is read.
    """
    if not snr_db:
        return history
    numbers = history.contiguous().numpy()
    rng = np.random.default_rng(list(hashlib.sha256(numbers.tobytes()).digest()))
    chosen_db = rng.uniform(snr_db[0], snr_db[-1])
    power = float(np.square(numbers, dtype=np.float64).mean())
    noise = rng.standard_normal(numbers.shape) * math.sqrt(power / 10 ** (chosen_db / 10))
    return torch.from_numpy((numbers + noise).astype(np.float32))


def _values(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.stack([s.values for s in samples if s.values is not None])


def _statistics(samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and scales, shape (samples, 1, features)."""
    mean = torch.stack([sample.target.mean for sample in samples])
    scale = torch.stack([sample.target.scale for sample in samples])
    return mean[:, None], scale[:, None]


def _own_statistics(
    history: torch.Tensor, how: Literal["feature", "sample", "power", "none"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of a history (steps, features), each (features,).

    What does not vary is divided by 1.
    """
    features = history.shape[1]
    if how == "none":
        return torch.zeros(features), torch.ones(features)
    numbers = history.double() if how == "feature" else history.double().reshape(-1, 1)
    mean, scale = numbers.mean(0), numbers.std(0, correction=0)
    if how == "power":
        mean, scale = torch.zeros_like(mean), numbers.square().mean(0).sqrt()
    flat = scale <= 1e-6 * numbers.abs().amax(0)
    scale = torch.where(flat, torch.ones_like(scale), scale)
    return mean.float().expand(features), scale.float().expand(features)
