"""Causal language modelling: next-token loss over the output embedding, in chunks of logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fedlora.config import DataConfig
from fedlora.errors import FedloraError
from fedlora.split import Checkpoint, LanguageHead
from fedlora.tasks.base import IGNORED, RecordError, Sample, Task, TaskLoss
from fedlora.tasks.chat import TurnFault
from fedlora.tasks.columns import Record
from fedlora.tasks.language_records import NoSeparator, encode_record, renders_chat
from fedlora.tasks.metrics import LanguageCounts
from fedlora.tasks.tokenizer import Tokenizer

_CHUNK_ELEMENTS = 4 << 20  # most logits held at once: 16 MiB in fp32, whatever the vocabulary


class CausalLanguageModelling(Task):
    """Predict the next token; perplexity."""

    pooled = False
    trains_head = False

    def samples(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, data: DataConfig
    ) -> list[Sample]:
        """See ``Task``; of conversations and prompts only what the assistant says is trained on.

        A record of which nothing is left to predict within ``task.max_length`` gives no sample.
        """
        assert tokenizer is not None
        samples = []
        chat, longest = renders_chat(data.renders, tokenizer), self.config.max_length
        for place, record in enumerate(records):
            try:
                made = encode_record(record, tokenizer, data, longest, chat=chat)
            except (TurnFault, NoSeparator) as fault:
                raise RecordError(place, str(fault)) from None
            following = zip(made.ids[1:], made.learnt[1:], strict=True)
            targets = [token if learnt else IGNORED for token, learnt in following]
            if any(made.learnt[1:]):
                sample = Sample(tuple(made.ids), (*targets, IGNORED), place, made.cut)
                samples.append(sample)
        if records and not samples:
            raise FedloraError(
                "no record has a token to predict within task.max_length "
                f"{longest}; raise it or shorten the prompts"
            )
        return samples

    def head(self, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int) -> nn.Module:
        """See ``Task``; the pretrained output embedding, so the seed plays no part."""
        del width, seed
        return LanguageHead.of(checkpoint, dtype)

    @torch.no_grad()
    def loss(
        self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample], *, sample_mean: bool
    ) -> TaskLoss:
        """See ``Task``.

        The gradient of a chunk is ``(softmax - onehot) W``, worked out in place: one buffer of
        logits instead of the three that autograd keeps.
        """
        assert isinstance(head, LanguageHead)
        gradient = torch.zeros_like(z, dtype=torch.float32)
        weights = _token_weights(samples, sample_mean)
        total = 0.0
        for places, targets, hidden, logits in _chunks(head, z, samples):
            scale = weights[places][:, None]
            slope = 1 - (logits / head.cap) ** 2 if head.cap else None
            peak = logits.amax(1, keepdim=True)
            wanted = logits.gather(1, targets[:, None])
            exponentials = logits.sub_(peak).exp_()
            normalizer = exponentials.sum(1, keepdim=True)
            total += float((scale * (normalizer.log() + peak - wanted)).sum())
            delta = exponentials.mul_(scale / normalizer)
            delta.scatter_add_(1, targets[:, None], -scale)
            if slope is not None:
                delta.mul_(slope)
            if head.scale != 1.0:
                delta.mul_(head.scale)
            gradient[places] = (delta.to(head.weight.dtype) @ head.weight).float()
            if head.weight.requires_grad:
                grad = delta.T.to(hidden.dtype) @ hidden
                head.weight.grad = grad if head.weight.grad is None else head.weight.grad + grad
        weight = float(len(samples)) if sample_mean else float(weights.sum())
        return TaskLoss(total, weight, gradient)

    @torch.no_grad()
    def measure(
        self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample]
    ) -> LanguageCounts:
        """See ``Task``."""
        assert isinstance(head, LanguageHead)
        loss, tokens, correct = 0.0, 0, 0
        for _, targets, _, logits in _chunks(head, z, samples):
            loss += F.cross_entropy(logits, targets, reduction="sum").item()
            tokens += len(targets)
            correct += int((logits.argmax(1) == targets).sum())
        return LanguageCounts(loss, tokens, correct, len(samples))

    def read_counts(self, value: Any) -> LanguageCounts:
        """See ``Task``."""
        return LanguageCounts.from_dict(value)


def _token_weights(samples: Sequence[Sample], sample_mean: bool) -> torch.Tensor:
    """Return the weight of each packed token in the loss: 1, or 1 over its sample's targets."""
    weights: list[float] = []
    for sample in samples:
        assert isinstance(sample.target, tuple)
        count = sum(target != IGNORED for target in sample.target)
        weights += [(1 / count if sample_mean else 1.0) * (t != IGNORED) for t in sample.target]
    return torch.tensor(weights)


def _chunks(
    head: LanguageHead, z: torch.Tensor, samples: Sequence[Sample]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield places, targets, hidden states and logits (fp32) of the trained tokens."""
    targets = torch.tensor([t for sample in samples for t in _tuple(sample.target)])
    trained = (targets != IGNORED).nonzero().squeeze(1)
    chunks = math.ceil(len(trained) * len(head.weight) / _CHUNK_ELEMENTS)
    for places in trained.tensor_split(chunks):  # of nearly equal size
        hidden = z[places].to(head.weight.dtype)
        yield places, targets[places], hidden, head(hidden)


def _tuple(target: int | tuple[int, ...]) -> tuple[int, ...]:
    assert isinstance(target, tuple)
    return target
