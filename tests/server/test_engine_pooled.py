"""The last block at pooled tokens alone: what it saves is computed, what it cannot is not tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import architectures
from support.federation import scenario

from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.split import Checkpoint
from fedlora.split.packed import attend_once

LENGTHS = [[5, 3], [4, 9, 4], [2]]


def make_engine(folder: Path, *settings: str) -> SplitEngine:
    engine = SplitEngine(Checkpoint(folder), scenario(folder, folder, *settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for projection in engine.projections:
            projection.B.normal_(std=0.05, generator=generator)
    return engine


def batch(engine: SplitEngine, lowest: int = 0) -> list[ClientRows]:
    generator = torch.Generator().manual_seed(4)
    width = engine.geometry.activation_width
    ranks = [
        [(client + 1) * (p.layer >= lowest) for p in engine.projections] for client in range(3)
    ]
    return [
        ClientRows(torch.randn(sum(n), width, generator=generator), n, ranks[c], str(c), True)
        for c, n in enumerate(LENGTHS)
    ]


def gradients(engine: SplitEngine, rows: list[ClientRows]) -> list[torch.Tensor]:
    z = engine.forward(rows, train=True)
    generator = torch.Generator().manual_seed(8)
    engine.backward([torch.randn(part.shape, generator=generator) for part in z], [1.0] * len(z))
    found = [f.grad for p in engine.projections for f in (p.A, p.B) if f.grad is not None]
    return [*z, *(grad.clone() for grad in found)]


@pytest.mark.parametrize(
    ("family", "pool", "name"),
    [
        ("bert", "cls", "output.dense"),
        ("llama", "last", "down_proj"),
        ("gpt2", "last", "mlp.c_proj"),
    ],
)
@pytest.mark.parametrize("train", [True, False])
def test_the_last_block_computes_its_mlp_at_one_token_of_each_row(
    checkpoints, family, pool, name, train
):
    engine = make_engine(checkpoints[family], f"task.pool={pool}")
    last = engine.blocks.layers[-1]
    seen: list[int] = []
    for own, module in last.named_modules():
        if own.endswith(name) and "attention" not in own:
            module.register_forward_pre_hook(lambda _, x: seen.append(x[0][..., 0].numel()))
    engine.forward(batch(engine), train=train)
    assert seen == [sum(map(len, LENGTHS))]


SAVED = ["compute.checkpoint=true"]
"""Makes the engine compute all tokens: what the pooled ones are compared with."""


@pytest.mark.parametrize("family", ["bert", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("lowest", [0, 3, 4])
@pytest.mark.parametrize("more", [[], ["compute.reuse_blocks=true"]], ids=["", "reuse"])
def test_pooled_tokens_and_gradients_are_those_of_all_tokens(checkpoints, family, lowest, more):
    pool = f"task.pool={'cls' if family == 'bert' else 'last'}"
    whole, one = (
        make_engine(checkpoints[family], pool, *SAVED),
        make_engine(checkpoints[family], pool, *more),
    )
    expected, found = (gradients(engine, batch(engine, lowest)) for engine in (whole, one))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.dist(a, b) <= 1e-5 * b.norm() + 1e-7


@pytest.mark.parametrize("setting", ["robust.average=median", "lora.dropout=0.5", *SAVED])
def test_all_tokens_are_computed_where_one_would_change_the_result(checkpoints, setting):
    more = ["robust.hostile=1"] if "median" in setting else []
    engine = make_engine(checkpoints["llama"], "task.pool=last", setting, *more)
    seen: list[int] = []
    last = engine.blocks.layers[-1]
    last.mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0][..., 0].numel()))
    engine.forward(batch(engine), train=True)
    assert seen == [sum(map(sum, LENGTHS))]


def test_a_block_that_attends_by_other_means_is_computed_at_all_tokens(checkpoints, monkeypatch):
    engine = make_engine(checkpoints["llama"], "task.pool=last")
    plain = engine.forward(batch(engine), train=False)
    attention = type(engine.blocks.layers[-1].self_attn)
    forward = attention.forward

    def own(self: Any, hidden_states: torch.Tensor, **told: Any) -> Any:
        if self.layer_idx < 3:
            return forward(self, hidden_states, **told)
        return hidden_states, None

    monkeypatch.setattr(attention, "forward", own)
    found = engine.forward(batch(engine), train=False)
    assert [part.shape for part in found] == [part.shape for part in plain]
    assert all(torch.isfinite(part).all() for part in found)


@pytest.mark.parametrize(("kind", "pool"), [("gpt2", "last"), ("bert", "cls"), ("opt", "last")])
def test_a_model_of_one_block_has_its_embedding_stage_once(tmp_path, monkeypatch, kind, pool):
    """Positions and norms before the first block go with it, and with no second pass of it."""
    for key in ("num_hidden_layers", "n_layer"):
        monkeypatch.setitem(architectures.SIZES, key, 1)
    architectures.tiny(kind, tmp_path)
    whole, found = (
        gradients(engine, batch(engine))
        for engine in (make_engine(tmp_path, f"task.pool={pool}", *more) for more in (SAVED, ()))
    )
    assert len(found) == len(whole)
    for a, b in zip(found, whole, strict=True):
        assert torch.dist(a, b) <= 1e-5 * b.norm() + 1e-7


def test_keys_of_all_rows_get_their_gradients_by_one_split():
    """A slice a row would make as many gradients as rows, each as long as all of them."""
    query = torch.randn(1, 2, 3, 4)
    key, value = (torch.randn(1, 2, 14, 4, requires_grad=True) for _ in range(2))
    seen = [slice(0, 4), slice(5, 9), slice(12, 14)]  # with tokens between that no row sees
    module = torch.nn.Module()
    module.num_key_value_groups, module.training = 1, False
    out = attend_once(module, query, key, value, seen, {"scaling": 0.5, "dropout": 0.0})
    names = graph_names(out)
    assert names.count("SplitWithSizesBackward0") == 2
    assert not [name for name in names if name.startswith("SliceBackward")]
    for row, own in enumerate(seen):
        q, k, v = query[0, :, row], key[0, :, own], value[0, :, own]
        scores = torch.einsum("hd,htd->ht", q, k) * 0.5
        expected = torch.einsum("ht,htd->hd", scores.softmax(-1), v)
        torch.testing.assert_close(out[0, row], expected)
    out.sum().backward()
    assert not key.grad[0, :, [4, 9, 10, 11]].any()
    assert key.grad[0, :, 13].all()


def graph_names(output: torch.Tensor) -> list[str]:
    found, open_ = [], [output.grad_fn]
    seen: set[Any] = set()
    while open_:
        node = open_.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(node.name())
        open_ += [next_ for next_, _ in node.next_functions]
    return found
