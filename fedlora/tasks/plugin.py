"""Asking a task, and holding what it answers to what a task has to: a stranger's may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from fedlora.config import DataConfig, TaskConfig
from fedlora.errors import FedloraError
from fedlora.registry import blaming
from fedlora.split import Checkpoint
from fedlora.tasks.base import Counts, Sample, Task, TaskLoss
from fedlora.tasks.columns import Record
from fedlora.tasks.tokenizer import Tokenizer


def make_task(kind: type[Task], config: TaskConfig, labels: Sequence[str] = ()) -> Task:
    """Make a task; raises ``FedloraError`` for one that cannot be made."""
    with blaming(f"task.kind {config.kind!r}", kind):
        return kind(config, labels)


def samples_of(
    task: Task, records: Sequence[Record], tokenizer: Tokenizer | None, data: DataConfig
) -> list[Sample]:
    """Return a task's samples; raises ``FedloraError`` where it makes anything else."""
    with _blaming(task):
        found: object = task.samples(records, tokenizer, data)
    odd: object = found
    if isinstance(found, Sequence) and not isinstance(found, str):
        odds = [sample for sample in found if not isinstance(sample, Sample)]
        if not odds:
            return list(found)
        odd = odds[0]
    raise _wrong(task, "samples()", odd, "a list of fedlora.tasks.Sample")


def head_of(
    task: Task, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int
) -> nn.Module:
    """Return a task's head; raises ``FedloraError`` where it is no module."""
    with _blaming(task):
        head: object = task.head(checkpoint, dtype, width, seed)
    if not isinstance(head, nn.Module):
        raise _wrong(task, "head()", head, f"a module that takes vectors of {width} numbers")
    return head


def loss_of(
    task: Task, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample], *, sample_mean: bool
) -> TaskLoss:
    """Return a task's loss; raises ``FedloraError`` where its gradient is not of z's shape."""
    with _blaming(task):
        loss: object = task.loss(head, z, samples, sample_mean=sample_mean)
    shape = tuple(z.shape)
    if not isinstance(loss, TaskLoss) or not isinstance(loss.gradient, torch.Tensor):
        raise _wrong(task, "loss()", loss, f"a TaskLoss with a gradient of shape {shape}")
    if tuple(loss.gradient.shape) != shape:
        raise _wrong(task, "loss()", loss.gradient, f"a gradient of shape {shape}, as z has")
    return loss


def counts_of(task: Task, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample]) -> Counts:
    """Return a task's counts; raises ``FedloraError`` where they cannot be added and told."""
    with _blaming(task):
        found = task.measure(head, z, samples)
    if not all(hasattr(found, name) for name in ("samples", "to_dict", "metrics", "__add__")):
        raise _wrong(task, "measure()", found, "counts, such as fedlora.tasks.ErrorCounts")
    return found


def _blaming(task: Task) -> AbstractContextManager[None]:
    return blaming(f"task.kind {task.config.kind!r}", type(task))


def _wrong(task: Task, method: str, found: object, expected: str) -> FedloraError:
    what = f"a {type(found).__name__}"
    if isinstance(found, torch.Tensor):
        what = f"shape {tuple(found.shape)}"
    return FedloraError(
        f"task.kind {task.config.kind!r} returns {what} from {method}; expected {expected}"
    )
