"""Try a task on the records and the model of a scenario, and say what is wrong."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fedlora.config import Scenario
from fedlora.errors import FedloraError, ProtocolError, described
from fedlora.plugin_finding import PluginFinding
from fedlora.split import Checkpoint, model_folder, token_embedding
from fedlora.tasks.base import Counts, Sample, Task, TaskLoss, task_class
from fedlora.tasks.columns import class_names, label_column
from fedlora.tasks.encoding import encode_records, fitting_tokenizer
from fedlora.tasks.plugin import vectors_of

_RECORDS = 24  # of the scenario that are looked at
_BATCH = 5
_CLOSE = 1e-4
_STEP, _SLOPE = 1e-2, 0.02  # of a finite difference, and by how much it may be off
_JUNK: tuple[Any, ...] = (None, [], {}, "counts", {"loss": 1.0}, [[1]], 7)
_ODD: tuple[Any, ...] = (None, "1", math.nan, [[-1]], -1)


def check_task(scenario: Scenario) -> list[str]:
    """Try the task that a scenario names, on its training records and with its model.

    Parameters
    ----------
    scenario
        Its ``task``, ``data`` and ``model`` are used.

    Returns
    -------
    list of str
        One sentence for each finding of the first kind that there is: what happened, and what was
        expected. Empty if nothing speaks against the task.

    Raises
    ------
    FedloraError
        When the scenario's model or data cannot be used, whatever the task.
    """
    kind = task_class(scenario.task.kind)
    for name in ("pooled", "trains_head"):
        if not isinstance(getattr(kind, name, None), bool):
            return [f"{kind.__name__}.{name} is not set; expected True or False"]
    trial = _Trial.of(scenario, kind)
    for part in (trial.samples_found, trial.fronts, trial.losses, trial.heads, trial.counts):
        try:
            findings = list(dict.fromkeys(part()))
        except PluginFinding as finding:
            findings = [str(finding)]
        except FedloraError as error:
            findings = [f"it was refused: {error}; expected that it fits its own records"]
        except (Exception, SystemExit) as error:
            findings = [f"it raised {described(error)}; expected that it takes its own records"]
        if findings:  # what comes later often follows from it
            return findings
    return []


@dataclass
class _Trial:
    """A task, and what it is tried on."""

    scenario: Scenario
    task: Task
    checkpoint: Checkpoint
    tokenizer: Any
    records: list[Any]
    width: int
    states: int

    @classmethod
    def of(cls, scenario: Scenario, kind: type[Task]) -> _Trial:
        checkpoint = Checkpoint(model_folder(scenario.model.path))
        label = label_column(scenario.data, labelled=kind.labelled)
        records = list(kind.records(scenario, "train", labelled=bool(label)))
        labels = scenario.task.labels
        if label and not labels:
            labels = tuple(class_names(records, scenario.data, scenario.data.train))
        return cls(
            scenario,
            kind(scenario.task, labels),
            checkpoint,
            fitting_tokenizer(kind, checkpoint),
            records[:_RECORDS],
            token_embedding(checkpoint, torch.float32).shape[1],
            checkpoint.size("hidden_size"),
        )

    def encoded(self, records: Sequence[Any]) -> list[Sample]:
        """Return the samples of records, of the form that they must have."""
        found: object = encode_records(
            self.task,
            records,
            self.tokenizer,
            self.scenario.data,
            self.checkpoint.size("vocab_size"),
        )
        if not isinstance(found, list) or not all(isinstance(own, Sample) for own in found):
            raise PluginFinding(f"samples returned {found!r:.60}; expected a list of Sample")
        return found

    def samples_found(self) -> Iterator[str]:
        """Look at samples: each of its own record, the same again, and not too long."""
        before = copy.deepcopy(self.records)
        found = self.encoded(self.records)
        if not _close(self.records, before):
            yield "samples has changed the records; expected that it copies what it changes"
        if not found:
            yield f"samples made nothing of {len(self.records)} records; expected some samples"
        if self.encoded([]):
            yield "samples made something of no record; expected nothing"
        longest = self.scenario.task.max_length
        for sample in found:
            if not 0 <= sample.source < len(self.records):
                yield (
                    f"a sample has the source {sample.source} of {len(self.records)} records; "
                    "expected its record's place among those given, as owners' budgets go by it"
                )
            elif not 0 < sample.length <= longest:
                yield (
                    f"a sample has {sample.length} places, and task.max_length is {longest}; "
                    "expected 1 to that many"
                )
        again = self.encoded(self.records)
        if not _equal(found, again):
            yield "samples gave others for the same records; expected the same"
        alone = [own for at in (0, -1) for own in self.encoded([self.records[at]])]
        first, last = 0, len(self.records) - 1
        if last and not _equal(
            [own for at in (first, last) for own in found if own.source == at], alone
        ):
            yield (
                "a record's samples depend on the records beside it, which other owners may see "
                "then; expected that each follows from its own record"
            )

    def batch(self) -> list[Sample]:
        """Return samples to compute with."""
        return self.encoded(self.records)[:_BATCH]

    def fronts(self) -> Iterator[str]:
        """Look at vectors: one a place, the same on every client, each of its own sample."""
        samples = self.batch()

        def front() -> nn.Module:
            return self.task.front(self.checkpoint, torch.float32, self.width, 3)

        one, other = front().eval(), front().eval()
        if not _same_weights(one, other):
            yield "front gave other weights for the same seed; expected the same on every client"
            return
        with torch.no_grad():
            whole = vectors_of(self.task, one, samples, self.width)
            parts = [vectors_of(self.task, one, [own], self.width) for own in samples]
        if not torch.isfinite(whole).all():
            yield "the front made vectors that are not finite; expected finite numbers"
        elif not torch.allclose(whole, torch.cat(parts), rtol=_CLOSE, atol=_CLOSE):
            yield (
                "a sample's vectors depend on the samples beside it; expected that each follows "
                "from its own, also in what is normalised"
            )

    def head(self) -> nn.Module:
        """Return a head."""
        return self.task.head(self.checkpoint, torch.float32, self.states, 3)

    def inputs(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Draw what a head is given for samples."""
        rows = len(samples) if self.task.pooled else sum(own.length for own in samples)
        return torch.randn(rows, self.states, generator=torch.Generator().manual_seed(5))

    def loss(
        self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample], *, mean: bool = False
    ) -> TaskLoss:
        """Return a loss, of the form that it must have."""
        before = z.clone()
        found: object = self.task.loss(head, z, samples, sample_mean=mean)
        if not isinstance(found, TaskLoss):
            raise PluginFinding(f"loss returned {found!r:.60}; expected a TaskLoss")
        if not torch.equal(z, before):
            raise PluginFinding(
                "loss has changed its input; expected that it copies what it changes"
            )
        if found.gradient.shape != z.shape or not torch.isfinite(found.gradient).all():
            raise PluginFinding(
                f"loss gave a gradient of shape {tuple(found.gradient.shape)} for an input of "
                f"{tuple(z.shape)}; expected finite numbers of the input's shape"
            )
        if not (math.isfinite(found.total) and math.isfinite(found.weight) and found.weight >= 0):
            raise PluginFinding(
                f"loss gave total {found.total!r} and weight {found.weight!r}; expected finite "
                "numbers, the weight of at least 0"
            )
        return found

    def losses(self) -> Iterator[str]:
        """Compare losses with sums over samples, and gradients with finite differences."""
        samples, head = self.batch(), self.head()
        z = self.inputs(samples)
        for mean in (False, True):
            whole = self.loss(head, z, samples, mean=mean)
            sizes = [1 if self.task.pooled else own.length for own in samples]
            alone = [
                self.loss(head, part, [own], mean=mean)
                for own, part in zip(samples, torch.split(z, sizes), strict=True)
            ]
            for name in ("total", "weight"):
                value, summed = getattr(whole, name), sum(getattr(one, name) for one in alone)
                if not math.isclose(value, summed, rel_tol=_CLOSE, abs_tol=_CLOSE):
                    yield (
                        f"loss has {name} {value:.6g} for a batch and {summed:.6g} summed over its "
                        f"samples (sample_mean={mean}); expected unreduced sums"
                    )
            gradients = torch.cat([one.gradient for one in alone])
            if not torch.allclose(whole.gradient, gradients, rtol=1e-3, atol=_CLOSE):
                yield (
                    "the gradient of a sample depends on the samples beside it "
                    f"(sample_mean={mean}); expected that of its own loss alone"
                )
            slope, told = self._slope(head, z, samples, whole, mean=mean)
            if abs(slope - told) > _SLOPE * (abs(slope) + abs(told)) + 1e-3:
                yield (
                    f"loss rises by {slope:.4g} along its gradient, of which it says {told:.4g} "
                    f"(sample_mean={mean}); expected the derivative of the total"
                )

    def _slope(
        self,
        head: nn.Module,
        z: torch.Tensor,
        samples: Sequence[Sample],
        found: TaskLoss,
        *,
        mean: bool,
    ) -> tuple[float, float]:
        """Return how the loss rises along its gradient, measured and as told."""
        way = found.gradient / found.gradient.norm().clamp_min(1e-12)
        up = self.loss(head, z + _STEP * way, samples, mean=mean).total
        down = self.loss(head, z - _STEP * way, samples, mean=mean).total
        return (up - down) / (2 * _STEP), float((found.gradient * way).sum())

    def heads(self) -> Iterator[str]:
        """Look at the head's weights and at its own gradient."""
        if not _same_weights(self.head(), self.head()):
            yield "head gave other weights for the same seed; expected the same on every client"
        samples, head = self.batch(), self.head()
        z = self.inputs(samples)
        for parameter in head.parameters():
            parameter.requires_grad_(self.task.trains_head)
            parameter.grad = None
        self.loss(head, z, samples)
        once = [None if p.grad is None else p.grad.clone() for p in head.parameters()]
        if not self.task.trains_head:
            if any(gradient is not None for gradient in once):
                yield "loss gave a head that does not train a gradient; expected none"
            return
        if not any(gradient is not None and bool(gradient.any()) for gradient in once):
            yield "loss gave a head that trains no gradient; expected that it adds the head's own"
            return
        self.loss(head, z, samples)
        for first, parameter in zip(once, head.parameters(), strict=True):
            twice = parameter.grad
            if first is not None and (
                twice is None or not torch.allclose(twice, 2 * first, rtol=1e-3, atol=1e-6)
            ):
                yield "loss put a gradient in the place of the one before; expected that it adds"

    def counts(self) -> Iterator[str]:
        """Look at counts: they add up, and what comes over a wire is read or refused."""
        samples, head = self.batch(), self.head()
        z = self.inputs(samples)
        sizes = [1 if self.task.pooled else own.length for own in samples]
        whole = self.task.measure(head, z, samples)
        parts = [
            self.task.measure(head, part, [own])
            for own, part in zip(samples, torch.split(z, sizes), strict=True)
        ]
        summed: Counts = parts[0]
        for part in parts[1:]:
            summed = summed + part
        if whole.samples != summed.samples or not _close(whole.to_dict(), summed.to_dict()):
            yield "counts of a batch are not the sum of its samples'; expected that they add up"
        named = {metric.name: metric.value for metric in whole.metrics()}
        if "loss" not in named or not all(math.isfinite(value) for value in named.values()):
            yield f"metrics are {named!r:.80}; expected finite ones, and loss among them"
        try:
            told = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
        except (TypeError, ValueError) as error:
            yield f"to_dict cannot be written as JSON ({described(error)}); expected that it can"
            return
        if not _close(self.task.read_counts(told).to_dict(), whole.to_dict()):
            yield "read_counts makes other counts of what to_dict wrote; expected the same"
        hostile: list[Any] = list(_JUNK)
        if isinstance(told, dict):
            hostile += [{**told, key: odd} for key in told for odd in _ODD]
            hostile += [{k: v for k, v in told.items() if k != key} for key in told]
        for value in hostile:
            try:
                read = self.task.read_counts(value).to_dict()
            except ProtocolError:
                continue
            except (Exception, SystemExit) as error:
                yield (
                    f"read_counts raised {described(error)} for {value!r:.60} off a wire; expected "
                    "a ProtocolError"
                )
                return
            yield f"read_counts made {read!r:.60} of {value!r:.60}; expected a ProtocolError"
            return


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def _equal(one: Sequence[Sample], other: Sequence[Sample]) -> bool:
    """Compare samples, but for their places among records."""
    return len(one) == len(other) and all(
        a.ids == b.ids
        and a.cut == b.cut
        and _close(a.target, b.target)
        and _close(a.values, b.values)
        for a, b in zip(one, other, strict=True)
    )


def _close(one: Any, other: Any) -> bool:
    """Compare values as JSON has them, arrays and tensors, but for the last bits."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one, other, rtol=_CLOSE, atol=_CLOSE)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool(np.array_equal(one, other))
    if is_dataclass(one) and type(one) is type(other):
        return all(_close(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return bool(one == other)
