"""A task of one's own whose inputs are no tokens: where a sensor's reading will be next.

Fifteen readings and the next are drawn; a front maps each three, and trains by train.embedding.

    fedlora run quickstart --set task.kind=simulations.examples.readings:Readings \
      --set privacy.epsilon=none --set partition.kind=iid --set data.test= --set task.pool=mean
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from fedlora.config import DataConfig, Scenario
from fedlora.split import Checkpoint
from fedlora.tasks import ErrorCounts, Sample, Task, TaskLoss, Tokenizer

_PLACES, _READINGS, _ROWS = 5, 3, 480


class Readings(Task):
    """Predicts the next reading; NMSE."""

    pooled, trains_head, tokens = True, True, False

    @classmethod
    def records(
        cls, scenario: Scenario, which: Literal["train", "test"], *, labelled: bool
    ) -> list[Mapping[str, Any]]:
        """Draw sines of different speeds; without this, data.train is read, as for texts."""
        del which, labelled
        drawn = torch.Generator().manual_seed(scenario.seed)
        phase, speed = torch.rand(2, _ROWS, 1, generator=drawn)
        waves = torch.sin(6 * phase + (0.2 + 0.6 * speed) * torch.arange(_PLACES * _READINGS + 1))
        return [{"readings": wave} for wave in waves.tolist()]

    def samples(
        self, records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer | None, data: DataConfig
    ) -> list[Sample]:
        """Return a sequence of places and what follows, of each record."""
        waves = [torch.tensor(record["readings"]) for record in records]
        places = [wave[:-1].reshape(_PLACES, _READINGS) for wave in waves]
        return [Sample((), w[-1:], i, values=places[i]) for i, w in enumerate(waves)]

    def front(self, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int) -> nn.Module:
        """Return what makes a vector of each place."""
        return _seeded(nn.Linear(_READINGS, width, bias=False), seed)

    def head(self, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int) -> nn.Module:
        """Return what makes a reading of the pooled vector."""
        return _seeded(nn.Linear(width, 1, bias=False), seed + 1)

    def loss(
        self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample], *, sample_mean: bool
    ) -> TaskLoss:
        """Return the loss and its gradient; a sample has one term."""
        z = z.detach().requires_grad_()
        loss = (head(z) - torch.stack([s.target for s in samples])).square().sum() / 2
        loss.backward()
        assert z.grad is not None
        return TaskLoss(loss.item(), float(len(samples)), z.grad)

    @torch.no_grad()
    def measure(self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample]) -> ErrorCounts:
        """Return the errors of an evaluation batch."""
        found, wanted = head(z), torch.stack([s.target for s in samples])
        return ErrorCounts.of(found, wanted, float((found - wanted).square().sum()) / 2)

    def read_counts(self, value: Any) -> ErrorCounts:
        """Read errors that came over a wire."""
        return ErrorCounts.from_dict(value)


def _seeded(module: nn.Linear, seed: int) -> nn.Module:
    nn.init.normal_(module.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return module
