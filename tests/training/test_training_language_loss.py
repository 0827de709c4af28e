"""The language-model loss, worked out in chunks and slices, is autograd's over all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fedlora.config import TaskConfig
from fedlora.split import LanguageHead, embeddings
from fedlora.tasks import IGNORED, Sample, causal_lm
from fedlora.tasks.causal_lm import CausalLanguageModelling

VOCABULARY, WIDTH = 53, 8
TASK = CausalLanguageModelling(TaskConfig(kind="causal_lm"))


def sample(length: int, prompt: int) -> Sample:
    ids = [(7 * place + length) % VOCABULARY for place in range(length)]
    targets = [*ids[1:], IGNORED]
    targets[: prompt - 1] = [IGNORED] * (prompt - 1)
    return Sample(tuple(ids), tuple(targets))


SAMPLES = [sample(9, 1), sample(4, 3), sample(13, 6), sample(2, 1)]


@pytest.fixture(params=[(4 << 20, 1 << 20), (200, 1 << 20), (4 << 20, 10), (1, 7)], ids=str)
def _sizes(request, monkeypatch):
    chunk, vocabulary = request.param
    monkeypatch.setattr(causal_lm, "_CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(embeddings, "_VOCABULARY_SLICE", vocabulary)


def reference(
    z: torch.Tensor, weight: torch.Tensor, cap: float, sample_mean: bool, scale: float = 1.0
):
    logits = scale * z @ weight.T
    if cap:
        logits = cap * torch.tanh(logits / cap)
    losses, start = [], 0
    for one in SAMPLES:
        part = logits[start : start + len(one.ids)]
        how = "mean" if sample_mean else "sum"
        targets = torch.tensor(one.target)
        losses.append(F.cross_entropy(part, targets, ignore_index=IGNORED, reduction=how))
        start += len(one.ids)
    return torch.stack(losses).sum(), logits


@pytest.mark.usefixtures("_sizes")
@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("sample_mean", [False, True])
def test_loss_and_gradients_equal_autograd(cap, scale, sample_mean):
    torch.manual_seed(0)
    z = torch.randn(sum(len(s.ids) for s in SAMPLES), WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    head = LanguageHead(weight.detach().clone(), cap, scale)
    head.weight.requires_grad_()
    for _ in range(2):  # a second batch adds to the head's gradient
        loss = TASK.loss(head, z.detach(), SAMPLES, sample_mean=sample_mean)
    expected, _ = reference(z, weight, cap, sample_mean, scale)
    expected.backward()
    terms = sum(target != IGNORED for one in SAMPLES for target in one.target)
    assert loss.total == pytest.approx(expected.item(), rel=1e-5)
    assert loss.weight == pytest.approx(len(SAMPLES) if sample_mean else terms)
    torch.testing.assert_close(loss.gradient, z.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head.weight.grad, 2 * weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_sizes")
def test_counts_equal_those_over_all_logits():
    torch.manual_seed(0)
    z, weight = torch.randn(sum(len(s.ids) for s in SAMPLES), WIDTH), torch.randn(VOCABULARY, WIDTH)
    counts = TASK.measure(LanguageHead(weight), z, SAMPLES)
    total, logits = reference(z, weight, 0.0, False)
    targets = torch.tensor([target for one in SAMPLES for target in one.target])
    assert counts.loss == pytest.approx(total.item(), rel=1e-5)
    assert counts.correct == int((logits.argmax(1) == targets).sum())
    assert counts.tokens == int((targets != IGNORED).sum())
    assert counts.samples == len(SAMPLES)
