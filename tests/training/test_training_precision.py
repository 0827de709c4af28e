"""Codecs and half precision change a run a little, and only a little."""

from __future__ import annotations

import pytest
from support.federation import Federation, scenario

LONG = ["train.steps=8", "train.lr=0.005"]
TASKS = {"classification": ["head.share=step"], "language": ["task.kind=causal_lm"]}


def change(losses: list[float], reference: list[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(losses, reference, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_codecs_keep_the_loss_close_and_cut_the_bits(tiny, records, task):
    runs = {}
    for codec in ("fp32", "bf16", "int8"):
        link = [f"link.{name}={codec}" for name in ("activation", "representation", "gradient")]
        config = scenario(tiny["gpt2"], records, *TASKS[task], *LONG, *link)
        federation = Federation(config).run()
        runs[codec] = federation.recorder.losses(), federation.server.air.ledger.totals()["bits"]
    exact, exact_bits = runs["fp32"]
    assert 0 < change(runs["bf16"][0], exact) < 0.01
    assert 0 < change(runs["int8"][0], exact) < 0.02
    for direction, kind in (("up", "activation"), ("down", "representation")):
        full = exact_bits[direction][kind]
        assert runs["bf16"][1][direction][kind] == full / 2
        # A token of 32 numbers takes 32 bytes and a scale of 4 bytes, instead of 128.
        assert runs["int8"][1][direction][kind] == full * 36 / 128


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("gpt2", TASKS["classification"]),
        ("gpt2", TASKS["language"]),
        ("llama", TASKS["language"]),
        ("opt-350m-layout", TASKS["language"]),
        ("gemma2", [*TASKS["language"], "model.client_front=1", "model.client_back=1"]),
        ("bert", ["model.client_back=1", "head.share=round"]),
        ("llama", [*TASKS["language"], "head.train=yes", "head.share=step"]),
        ("gpt2", [*TASKS["language"], "head.train=yes", "head.share=round"]),
        ("gpt2", [*TASKS["classification"], "train.embedding=true"]),
    ],
    ids=str,
)
def test_bf16_weights_train_like_fp32(tiny, records, family, overrides):
    losses = {}
    for dtype in ("fp32", "bf16"):
        config = scenario(
            tiny[family], records, *overrides, f"model.dtype={dtype}", "train.lr=0.005"
        )
        federation = Federation(config).run()
        assert not federation.server.cohort.lost
        losses[dtype] = federation.recorder.losses()
    assert 0 < change(losses["bf16"], losses["fp32"]) < 0.02
