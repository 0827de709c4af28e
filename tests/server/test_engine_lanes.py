"""Rows in two lanes side by side give what they give together, whatever is trained and averaged."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_pooled import LENGTHS, batch, gradients, make_engine

from fedlora.server.compute import ClientRows, SplitEngine, lanes

LANGUAGE = "task.kind=causal_lm"


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """Give torch two threads, and the smallest batch lanes."""
    monkeypatch.setattr(lanes, "LEAST_NUMBERS", 0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def both(folder: Path, *settings: str) -> tuple[SplitEngine, SplitEngine]:
    """Return an engine with lanes, and one of a single lane."""
    found, whole = make_engine(folder, *settings), make_engine(folder, *settings)
    whole.prefix.lanes.used = False
    return found, whole


def threads_of(engine: SplitEngine) -> list[str]:
    """Note by which threads the last block is computed."""
    seen: list[str] = []
    engine.blocks.layers[-1].register_forward_pre_hook(
        lambda *_: seen.append(threading.current_thread().name.partition("_")[0])
    )
    return seen


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.dist(ours, theirs) <= 1e-5 * theirs.norm() + 1e-7


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "opt", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("lowest", [0, 2, 4])
def test_outputs_and_gradients_are_those_of_one_lane(checkpoints, family, lowest):
    settings = ["task.pool=mean"] if family == "bert" else [LANGUAGE]
    found, whole = both(checkpoints[family], *settings)
    seen = threads_of(found)
    assert_close(*(gradients(engine, batch(engine, lowest)) for engine in (found, whole)))
    assert seen == ["lane", "lane"]


@pytest.mark.parametrize(("family", "pool"), [("bert", "cls"), ("llama", "last"), ("opt", "last")])
@pytest.mark.parametrize("more", [[], ["compute.reuse_blocks=true"]], ids=["", "reuse"])
def test_a_last_block_at_pooled_tokens_has_lanes_of_its_own(checkpoints, family, pool, more):
    found, whole = both(checkpoints[family], f"task.pool={pool}", *more)
    for lowest in (0, 3, 4):
        assert_close(*(gradients(engine, batch(engine, lowest)) for engine in (found, whole)))
        for engine in (found, whole):
            engine.update.optimizer.zero_grad()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_lane_of_clients_that_train_nothing_has_no_gradient(checkpoints, family):
    """At pooled tokens alone, nothing that is adapted is computed for them."""
    name = "o_proj" if family == "llama" else "mlp.c_proj"
    found, whole = both(checkpoints[family], "task.pool=last", f'lora.targets=["{name}"]')

    def rows(engine: SplitEngine) -> list[ClientRows]:
        ranks = [[3 * (p.layer == 3 and own == 0) for p in engine.projections] for own in range(3)]
        return [
            ClientRows(r.activation, r.lengths, rank, r.client)
            for r, rank in zip(batch(engine), ranks, strict=True)
        ]

    order = [1, 0, 2]  # the client that trains is in one lane alone, whichever that is
    for places in (order, [0, 1, 2], [2, 1, 0]):
        results = []
        for engine in (found, whole):
            own = rows(engine)
            results.append(gradients(engine, [own[place] for place in places]))
            engine.update.optimizer.zero_grad()
        assert_close(*results)


def test_clients_that_enter_at_different_blocks_have_lanes_at_each(checkpoints):
    found, whole = both(checkpoints["llama"], LANGUAGE, "compute.reuse_blocks=true")
    ranks = [[0, 0, 2, 0], [1, 3, 2, 0], [0, 0, 0, 3]]

    def step(engine: SplitEngine) -> list[torch.Tensor]:
        rows = [
            ClientRows(
                r.activation, r.lengths, [own[p.layer] for p in engine.projections], r.client
            )
            for r, own in zip(batch(engine), ranks, strict=True)
        ]
        return gradients(engine, rows)

    def gradients(engine: SplitEngine, rows: list[ClientRows]) -> list[torch.Tensor]:
        z = engine.forward(rows, train=True)
        engine.backward([torch.ones_like(part) * part for part in z], [2.0, 1.0, 3.0])
        grads = [f.grad for p in engine.projections for f in (p.A, p.B)]
        return [*z, *(torch.zeros(1) if g is None else g for g in grads)]

    assert_close(step(found), step(whole))


@pytest.mark.parametrize("also", [[], ['lora.also=["norm"]']], ids=["", "also"])
def test_what_trains_beside_the_adapters_gets_its_gradient(checkpoints, also):
    found, whole = both(checkpoints["llama"], LANGUAGE, "train.embedding=true", *also)
    results = []
    for engine in (found, whole):
        z = engine.forward(batch(engine), train=True)
        upstream = engine.backward([torch.ones_like(part) * part for part in z], [2.0, 3.0, 1.0])
        assert upstream is not None
        assert [len(part) for part in upstream] == [sum(own) for own in LENGTHS]
        results.append(
            [*upstream, *(p.grad for p in engine.also.parameters() if p.grad is not None)]
        )
    assert len(results[0]) == 3 + len(whole.also.parameters())
    assert_close(*results)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_each_clients_own_gradients_stay_apart_over_the_batches_of_a_step(checkpoints, family):
    settings = ["robust.average=median", "robust.hostile=1"]
    settings.append("task.pool=mean" if family == "bert" else LANGUAGE)
    results = []
    for engine in both(checkpoints[family], *settings):
        rows = batch(engine)
        for order in (rows, rows[::-1], rows[1:]):
            z = engine.forward(order, train=True)
            engine.backward([torch.ones_like(p) * p for p in z], [2.0] * len(order))
        assert engine.update.by_client is not None
        blocks, weights, clients = engine.update.by_client.take()
        assert clients == ["0", "1", "2"]
        results.append([*(block.values for block in blocks), weights])
    assert_close(*results)


def test_a_batch_of_one_client_is_divided_by_rows_but_not_where_clients_stay_apart(checkpoints):
    for settings, threads in (
        ([LANGUAGE], ["lane", "lane"]),
        ([LANGUAGE, "robust.average=median", "robust.hostile=1"], ["MainThread"]),
    ):
        engine = make_engine(checkpoints["llama"], *settings)
        seen = threads_of(engine)
        engine.forward(batch(engine)[1:2], train=True)
        assert seen == threads


def test_a_gradient_is_told_from_its_noise_over_the_same_graph(checkpoints):
    ratios = []
    for engine in both(checkpoints["llama"], LANGUAGE):
        z = engine.forward(batch(engine), train=True)
        noise = [0.1 * torch.ones_like(part) for part in z]
        engine.backward([torch.ones_like(part) * part for part in z], [1.0] * 3, noise)
        ratios.append(engine.round_snr())
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)


@pytest.mark.parametrize(
    "setting", ["lora.dropout=0.5", "compute.checkpoint=true", "lora.r_max=3", "threads"]
)
def test_one_lane_computes_what_draws_is_computed_again_or_has_an_odd_number_of_threads(
    checkpoints, setting
):
    if setting == "threads":
        torch.set_num_threads(3)
    engine = make_engine(checkpoints["llama"], LANGUAGE, *([setting] if "=" in setting else []))
    seen = threads_of(engine)
    engine.forward(batch(engine), train=True)
    assert seen == (["lane"] * 2 if setting == "lora.r_max=3" else ["MainThread"])


def test_a_lane_that_fails_is_waited_for_and_told(checkpoints):
    engine = make_engine(checkpoints["llama"], LANGUAGE)
    left = threading.Event()

    def fails_in_one(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[1] > sum(map(sum, LENGTHS)) / 2:
            raise RuntimeError("out of memory")
        left.wait(0.2)
        left.set()

    engine.blocks.layers[0].register_forward_pre_hook(fails_in_one)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.forward(batch(engine), train=True)
    assert left.is_set()
