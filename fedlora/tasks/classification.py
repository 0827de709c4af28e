"""Sequence classification with a bare linear head on the pooled representation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fedlora.config import DataConfig
from fedlora.errors import ProtocolError, shown
from fedlora.split import Checkpoint
from fedlora.tasks.base import IGNORED, RecordError, Sample, Task, TaskLoss
from fedlora.tasks.columns import Record, require_column
from fedlora.tasks.metrics import ClassificationCounts, NoisedCounts
from fedlora.tasks.tokenizer import Tokenizer

_INIT_STD = 0.02  # as Hugging Face initialises a classification head
_MAX_CLASSES = 4096


class Classification(Task):
    """One class for each text; cross-entropy; accuracy and macro-F1.

    A sample with the target ``IGNORED`` is of none of the classes: it adds nothing to loss and
    gradient, and is never right.
    """

    pooled = True
    trains_head = True

    def samples(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, data: DataConfig
    ) -> list[Sample]:
        """See ``Task``."""
        assert tokenizer is not None
        require_column(records, data.label, "data.label")
        index = {label: number for number, label in enumerate(self.labels)}
        samples = []
        for place, record in enumerate(records):
            label = record[data.label]
            if label not in index:
                raise RecordError(
                    place,
                    f"has {data.label} {shown(label)}, which is not among the "
                    f"{len(index)} classes; add it to task.labels or mend the record",
                )
            ids, cut = tokenizer.encode_counting(record[data.text], self.config.max_length)
            if not ids:
                raise RecordError(
                    place,
                    f"has {data.text} {shown(record[data.text])}, which has no token; remove the "
                    "record or mend its text",
                )
            samples.append(Sample(tuple(ids), index[label], place, cut))
        return samples

    def head(self, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int) -> nn.Module:
        """See ``Task``; always in fp32, since it trains."""
        del checkpoint, dtype
        head = nn.Linear(width, len(self.labels), bias=False, device="meta")
        # Not by to_empty, for which torch imports sympy: a second in each client's process.
        head.weight = nn.Parameter(torch.empty(len(self.labels), width))
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(head.weight, std=_INIT_STD, generator=generator)
        return head

    def loss(
        self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample], *, sample_mean: bool
    ) -> TaskLoss:
        """See ``Task``; a sample has one term, so its mean is itself."""
        del sample_mean
        z = z.detach().requires_grad_()
        loss = F.cross_entropy(head(z), _classes(samples), reduction="sum", ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        return TaskLoss(loss.item(), float(len(samples)), z.grad)

    @torch.no_grad()
    def measure(
        self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample]
    ) -> ClassificationCounts:
        """See ``Task``."""
        logits, classes = head(z), _classes(samples)
        return ClassificationCounts.from_predictions(
            logits.argmax(-1).tolist(),
            classes.tolist(),
            len(self.labels),
            F.cross_entropy(logits, classes, reduction="sum", ignore_index=IGNORED).item(),
        )

    def read_counts(self, value: Any) -> ClassificationCounts | NoisedCounts:
        """See ``Task``; where no classes are named, their number is what the matrix has."""
        if isinstance(value, Mapping) and "correct" in value:
            return NoisedCounts.from_dict(value)
        if self.labels:
            return ClassificationCounts.from_dict(value, len(self.labels))
        confusion = value.get("confusion") if isinstance(value, Mapping) else None
        if not isinstance(confusion, Sequence) or not 1 <= len(confusion) <= _MAX_CLASSES:
            raise ProtocolError(f"counts need a confusion matrix of 1 to {_MAX_CLASSES} classes")
        return ClassificationCounts.from_dict(value, len(confusion))


def _classes(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.tensor([sample.target for sample in samples])
