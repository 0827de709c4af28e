"""Asking a task, and holding what it answers to what a task has to: a stranger's may be wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn

from fedlora.blame import blaming, is_ours
from fedlora.config import DataConfig, Scenario, TaskConfig
from fedlora.errors import FedloraError, shown
from fedlora.split import Checkpoint
from fedlora.tasks.base import Counts, Sample, Task, TaskLoss
from fedlora.tasks.columns import Record
from fedlora.tasks.tokenizer import Tokenizer


def make_task(kind: type[Task], config: TaskConfig, labels: Sequence[str] = ()) -> Task:
    """Make a task; raises ``FedloraError`` for one that cannot be made."""
    with blaming(f"task.kind {config.kind!r}", kind):
        task = kind(config, labels)
    if getattr(task, "config", None) is not config or not hasattr(task, "labels"):
        raise FedloraError(
            f"task.kind {config.kind!r} has lost its config or labels in __init__(); let that call "
            "super().__init__(config, labels)"
        )
    return task


def records_of(
    kind: type[Task], scenario: Scenario, which: Literal["train", "test"], *, labelled: bool
) -> list[Record]:
    """Return a task's records; raises ``FedloraError`` where it reads anything else."""
    with blaming(f"task.kind {scenario.task.kind!r}", kind):
        found: object = kind.records(scenario, which, labelled=labelled)
        if isinstance(found, Sequence) and not isinstance(found, str):
            found = list(found)
    if not isinstance(found, list):
        raise _wrong(scenario.task, "records()", found, "a list of dicts of named values")
    for record in () if is_ours(kind) else found:
        if not isinstance(record, Mapping):
            raise _wrong(scenario.task, "records()", record, "a list of dicts of named values")
    return found


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
            if not is_ours(type(task)):
                _check_samples(task, found, len(records))
            return list(found)
        odd = odds[0]
    raise _wrong(task.config, "samples()", odd, "a list of fedlora.tasks.Sample")


def _check_samples(task: Task, samples: Sequence[Sample], records: int) -> None:
    """Refuse samples of no record, and ids that are no tokens: owners' budgets go by the record."""
    for sample in samples:
        source, ids = sample.source, sample.ids
        if type(source) is not int or not -1 <= source < records:
            raise FedloraError(
                f"task.kind {task.config.kind!r} returns a sample with the source "
                f"{shown(source)} from samples() of {records} records; expected the place of its "
                "record among them, from 0"
            )
        if not isinstance(ids, tuple | list) or not all(type(x) is int and x >= 0 for x in ids):
            raise FedloraError(
                f"task.kind {task.config.kind!r} returns a sample with the ids {shown(ids)} from "
                "samples(); expected a tuple of token ids"
            )
        if task.tokens and not ids:
            raise FedloraError(
                f"task.kind {task.config.kind!r} returns a sample without ids from samples(); "
                "expected token ids, or `tokens = False` in the class, and values"
            )


def front_of(
    task: Task, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int
) -> nn.Module:
    """Return a task's front; raises ``FedloraError`` where it is no module."""
    with _blaming(task):
        front: object = task.front(checkpoint, dtype, width, seed)
    return _module(task, "front()", front, f"a module that makes {width} numbers a place")


def vectors_of(task: Task, front: nn.Module, samples: Sequence[Sample], width: int) -> torch.Tensor:
    """Return a batch's vectors, one for each token or place, shape (tokens, width).

    Parameters
    ----------
    task, front
        A task, and what its ``front`` built.
    samples
        The batch.
    width
        Numbers that a vector has to have.

    Raises
    ------
    FedloraError
        When the task makes others.
    """
    with _blaming(task):
        made: object = task.embed(front, samples)
    shape = (sum(sample.length for sample in samples), width)
    if not isinstance(made, torch.Tensor) or tuple(made.shape) != shape:
        what = f"shape {tuple(made.shape)}" if isinstance(made, torch.Tensor) else repr(made)
        raise FedloraError(
            f"the front of task.kind {task.config.kind} made {what:.80} in place of vectors of "
            f"shape {shape}, one for each place of each sample; mend its front() or embed()"
        )
    if not is_ours(type(task)):
        _check_floats(task, "embed()", made)
    return made


def head_of(
    task: Task, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int
) -> nn.Module:
    """Return a task's head; raises ``FedloraError`` where it is no module."""
    with _blaming(task):
        head: object = task.head(checkpoint, dtype, width, seed)
    return _module(task, "head()", head, f"a module that takes vectors of {width} numbers")


def loss_of(
    task: Task, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample], *, sample_mean: bool
) -> TaskLoss:
    """Return a task's loss; raises ``FedloraError`` where its gradient is not of z's shape."""
    with _blaming(task):
        loss: object = task.loss(head, z, samples, sample_mean=sample_mean)
    shape = tuple(z.shape)
    if not isinstance(loss, TaskLoss) or not isinstance(loss.gradient, torch.Tensor):
        raise _wrong(task.config, "loss()", loss, f"a TaskLoss with a gradient of shape {shape}")
    if tuple(loss.gradient.shape) != shape:
        raise _wrong(task.config, "loss()", loss.gradient, f"a gradient of shape {shape}, as z has")
    if not is_ours(type(task)):
        for name in ("total", "weight"):
            value = getattr(loss, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise FedloraError(
                    f"task.kind {task.config.kind!r} returns {shown(value)} as {name} from loss(); "
                    "expected a number, such as tensor.item() gives"
                )
        _check_floats(task, "loss()", loss.gradient, finite=False)
    return loss


def counts_of(task: Task, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample]) -> Counts:
    """Return a task's counts; raises ``FedloraError`` where they cannot be added and told."""
    with _blaming(task):
        found = task.measure(head, z, samples)
    if not all(hasattr(found, name) for name in ("samples", "to_dict", "metrics", "__add__")):
        raise _wrong(task.config, "measure()", found, "counts, such as fedlora.tasks.ErrorCounts")
    if not is_ours(type(task)):
        _check_counts(task, found, len(samples))
    return found


def _check_counts(task: Task, counts: Counts, samples: int) -> None:
    """Refuse counts of which the server could not tell a metric and a loss."""
    with _blaming(task):
        told, metrics, own = counts.to_dict(), counts.metrics(), counts.samples
        names: list[Any] = [getattr(metric, "name", None) for metric in metrics]
    if own != samples:
        raise FedloraError(
            f"task.kind {task.config.kind!r} counts {shown(own)} samples in measure() of "
            f"{samples}; count each once"
        )
    if not names or names[0] == "loss" or "loss" not in names:
        raise FedloraError(
            f"task.kind {task.config.kind!r} has the metrics {shown(names)}; let metrics() of its "
            "counts return the task's own first, and `loss` among the others"
        )
    try:
        json.dumps(told)
    except (TypeError, ValueError) as error:
        raise FedloraError(
            f"task.kind {task.config.kind!r} has counts whose to_dict() is no JSON ({error}); "
            "return numbers, texts, lists and dicts"
        ) from None


def _check_floats(task: Task, method: str, found: torch.Tensor, *, finite: bool = True) -> None:
    what = ""
    if not found.is_floating_point():
        what = f"{found.dtype}"
    elif finite and not bool(found.isfinite().all()):
        what = "NaN or infinity"
    if what:
        raise FedloraError(
            f"task.kind {task.config.kind!r} returns {what} from {method}; expected finite floats"
        )


def _module(task: Task, method: str, found: object, expected: str) -> nn.Module:
    if not isinstance(found, nn.Module):
        raise _wrong(task.config, method, found, expected)
    return found


def _blaming(task: Task) -> AbstractContextManager[None]:
    return blaming(f"task.kind {task.config.kind!r}", type(task))


def _wrong(config: TaskConfig, method: str, found: object, expected: str) -> FedloraError:
    what = f"a {type(found).__name__}"
    if isinstance(found, torch.Tensor):
        what = f"shape {tuple(found.shape)}"
    return FedloraError(
        f"task.kind {config.kind!r} returns {what} from {method}; expected {expected}"
    )
