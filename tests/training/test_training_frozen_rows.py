"""The baseline computes each row once: what frozen blocks make of it does not change."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from support.federation import Federation, scenario

from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.split import Checkpoint

EPOCHS = ["train.rounds=3", "train.steps=6", "evaluate.baseline=true"]


def baseline(run: Federation) -> float:
    [found] = [
        e["metric"]
        for e in run.recorder.events
        if e.get("phase") == "baseline" and e["event"] == "round"
    ]
    return float(found)


def counted(run: Federation, monkeypatch: Any) -> Counter[bytes]:
    """Count how often each row goes through the blocks before training begins."""
    seen: Counter[bytes] = Counter()
    engine = run.server.engine
    forward = engine._forward

    def watched(rows: Any, **options: Any) -> Any:
        if run.server.training._phase == "baseline" and engine._frozen is not None:
            for own in rows:
                parts = torch.split(own.activation, list(own.lengths))
                seen.update(own.client.encode() + part.numpy().tobytes() for part in parts)
        return forward(rows, **options)

    monkeypatch.setattr(engine, "_forward", watched)
    return seen


def test_the_baseline_computes_each_row_once_and_ends_where_all_of_them_lead(
    tiny, records, monkeypatch
):
    kept = Federation(scenario(tiny["llama"], records, *EPOCHS))
    seen = counted(kept, monkeypatch)
    kept.run()
    # Of rows that may not be kept nothing is.
    anew = Federation(scenario(tiny["llama"], records, *EPOCHS, "link.reuse=false"))
    every = counted(anew, monkeypatch)
    anew.run()
    assert set(seen) == set(every)
    assert max(seen.values()) == 1 < max(every.values())
    assert baseline(kept) == pytest.approx(baseline(anew), abs=1e-6)


def rows(engine: SplitEngine, rank: int) -> list[ClientRows]:
    generator = torch.Generator().manual_seed(2)
    width = engine.geometry.activation_width
    ranks = [rank] * len(engine.projections)
    return [
        ClientRows(torch.randn(sum(n), width, generator=generator), n, ranks, str(c), keepable=True)
        for c, n in enumerate([[5, 3], [4], [2, 6, 1]])
    ]


def in_order(batch: list[ClientRows], orders: list[list[int]]) -> list[ClientRows]:
    """Return the same rows in another order."""
    return [
        dataclasses.replace(
            own,
            activation=torch.cat(
                [torch.split(own.activation, list(own.lengths))[n] for n in order]
            ),
            lengths=[own.lengths[n] for n in order],
        )
        for own, order in zip(batch, orders, strict=True)
    ]


@pytest.mark.parametrize("settings", ["task.pool=last", "task.kind=causal_lm"])
def test_rows_come_back_in_their_order_whichever_are_kept(tiny, records, settings):
    engine = SplitEngine(Checkpoint(tiny["llama"]), scenario(tiny["llama"], records, settings))
    for projection in engine.projections:
        torch.nn.init.normal_(projection.B, std=0.1)
    batch, turned = rows(engine, 0), [[1, 0], [0], [2, 0, 1]]
    plain = engine.forward(batch, train=False)
    other = engine.forward(in_order(batch, turned), train=False)
    with engine.frozen():
        engine.forward(in_order(batch[:1], [[1]]), train=False)
        for asked, expected in ((batch, plain), (in_order(batch, turned), other), (batch, plain)):
            for found, own in zip(engine.forward(asked, train=False), expected, strict=True):
                torch.testing.assert_close(found, own, atol=1e-6, rtol=1e-5)
        adapted = engine.forward(rows(engine, 2), train=False)  # with a rank, nothing is frozen
    again = engine.forward(rows(engine, 2), train=False)
    for found, expected, frozen in zip(adapted, again, plain, strict=True):
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, frozen)
