"""``compute.reuse_blocks``: blocks below the lowest trained one are computed once, and exactly."""

from __future__ import annotations

import dataclasses
import errno
import logging
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from support.federation import Federation, same, scenario

from fedlora.errors import FedloraError
from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.split import Checkpoint
from fedlora.storage import tensor_files

LONG = ["train.rounds=3", "train.steps=4", "task.kind=causal_lm"]
HALVES = "ranks.strategy=support.rank_cycles:UpperHalf"
REUSE = "compute.reuse_blocks=true"


def halves(tiny: Any, records: Path, *more: str) -> Federation:
    return Federation(scenario(tiny["gpt2"], records, *LONG, HALVES, *more))


def losses(run: Federation) -> list[Any]:
    return [(r["loss"], r["metric"]) for r in run.recorder.rounds]


@pytest.fixture(scope="module")
def kept(tiny, records):
    return halves(tiny, records, REUSE).run()


def batch(engine: SplitEngine, ranks: list[list[int]]) -> list[ClientRows]:
    generator = torch.Generator().manual_seed(4)
    width = engine.geometry.activation_width
    lengths = [[5, 3], [4], [2, 6, 1]]
    return [
        ClientRows(
            torch.randn(sum(own), width, generator=generator), own, r, str(client), keepable=True
        )
        for client, (own, r) in enumerate(zip(lengths, ranks, strict=True))
    ]


def make_engine(folder: Path, *more: str) -> SplitEngine:
    engine = SplitEngine(Checkpoint(folder), scenario(folder, folder, *more))
    with torch.no_grad():
        for number, projection in enumerate(engine.projections):
            seed = torch.Generator().manual_seed(number)
            projection.B.normal_(std=0.05, generator=seed)
    return engine


def by_blocks(engine: SplitEngine, *ranks: list[int]) -> list[list[int]]:
    return [[own[p.layer] for p in engine.projections] for own in ranks]


def nodes(output: torch.Tensor) -> int:
    """Count the adapted projections in a graph."""
    found, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left.extend(before for before, _ in node.next_functions)
    return sum(type(node).__name__ == "_FusedBackward" for node in found)


@pytest.mark.parametrize("reuse", ["true", "false"])
def test_the_graph_ends_at_the_lowest_block_with_a_rank(tiny, reuse):
    engine = make_engine(tiny["llama"], f"compute.reuse_blocks={reuse}")
    each = len(engine.projections) // 4
    for lowest in range(5):
        low = [3 if block >= lowest else 0 for block in range(4)]
        none = [0] * 4
        (z, *others) = engine.forward(batch(engine, by_blocks(engine, low, none, none)), train=True)
        assert engine._output is not None
        assert nodes(engine._output) == each * (4 - lowest)
        if lowest == 4:
            assert not engine._output.requires_grad
        gradients = [torch.ones_like(part) for part in (z, *others)]
        assert engine.backward(gradients, [2.0, 1.0, 3.0]) is None
        trained = {p.layer for p in engine.projections if p.A.grad is not None}
        assert trained == set(range(lowest, 4))
        engine.update.step(0)


@pytest.mark.parametrize("family", ["gpt2", "bert", "gemma3_text", "opt-350m-layout"])
def test_clients_that_enter_at_different_blocks_get_what_all_blocks_give(tiny, family):
    plain, reuse = make_engine(tiny[family]), make_engine(tiny[family], REUSE)
    ranks = by_blocks(plain, [0, 0, 2, 0], [1, 3, 2, 0], [0, 0, 0, 3])
    found = []
    for engine in (plain, reuse, reuse):
        z = engine.forward(batch(engine, ranks), train=True)
        engine.backward([torch.ones_like(part) * part for part in z], [2.0, 1.0, 3.0])
        grads = [f.grad for p in engine.projections for f in (p.A, p.B)]
        found.append([*z, *(torch.zeros(1) if g is None else g for g in grads)])
        engine.update.optimizer.zero_grad()
    first, once, again = found
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    for ours, theirs in zip(once, first, strict=True):
        assert torch.dist(ours, theirs) <= 1e-5 * theirs.norm() + 1e-7


def test_no_bit_depends_on_what_is_kept_nor_on_who_else_is_in_the_batch(tiny, records, kept):
    small = halves(tiny, records, REUSE, "compute.reuse_blocks_mib=1")
    store = small.server.engine.prefix._kept
    assert store is not None
    store._limit_bytes = 2000  # some rows fit
    # as after a restart, which keeps nothing
    small.server.training.after_round = lambda: store.retain(())
    small.run()
    assert same(small.server.engine.adapter(), kept.server.engine.adapter())
    assert losses(small) == losses(kept)


def test_a_run_with_it_differs_from_one_without_by_rounding(tiny, records, kept):
    plain = halves(tiny, records).run()
    ours, theirs = kept.server.engine.adapter(), plain.server.engine.adapter()
    assert ours.keys() == theirs.keys()
    for (loss, metric), (other, their_metric) in zip(losses(kept), losses(plain), strict=True):
        assert loss == pytest.approx(other, rel=1e-5)
        assert metric == pytest.approx(their_metric, rel=1e-4)


def test_a_row_passes_the_lower_blocks_once(tiny, records):
    run = halves(tiny, records, REUSE)
    lengths: list[tuple[int, ...]] = []
    own = run.server.engine.blocks.forward

    def counted(packed: Any, rows: Any, first: int = 0, last: int | None = None) -> Any:
        if first == 0:
            lengths.append(tuple(rows))
        return own(packed, rows, first, last)

    run.server.engine.blocks.forward = counted  # type: ignore[method-assign]
    run.run()
    clients = run.server.cohort.clients
    rows = sum(run.server.cohort[c].rows + run.server.cohort[c].held_out_rows for c in clients)
    assert all(len(one) == 1 for one in lengths)
    assert len(lengths) <= rows < 3 * 4 * 3 * 3


def test_a_lower_rank_above_0_and_leaving_end_what_is_kept(tiny):
    engine = make_engine(tiny["gpt2"], REUSE)
    kept = engine.prefix._kept
    assert kept is not None
    upper, lower = by_blocks(engine, [0, 0, 1, 0], [0, 1, 0, 0])
    engine.forward(batch(engine, [upper, upper, upper]), train=True)
    whole = kept.nbytes
    engine.forward(batch(engine, [lower, upper, upper]), train=False)
    assert kept.nbytes == whole
    engine.forward(batch(engine, [lower, upper, upper]), train=True)
    depths = {c: {e.depth for e in own.entries.values()} for c, own in kept._own.items()}
    assert depths == {"0": {1}, "1": {2}, "2": {2}}
    engine.prefix.retain(["0", "1"])
    assert kept._own.keys() == {"0", "1"}
    engine.prefix.close()
    assert kept.nbytes == 0


def test_it_is_off_where_the_embedding_trains_and_where_dropout_acts(tiny):
    assert make_engine(tiny["gpt2"], REUSE, "train.embedding=true").prefix._kept is None
    engine = make_engine(tiny["gpt2"], REUSE, "lora.dropout=0.1")
    plain = make_engine(tiny["gpt2"], "lora.dropout=0.1")
    ranks = by_blocks(engine, *[[0, 0, 3, 3]] * 3)
    z = [e.forward(batch(e, ranks), train=True, exchange=7) for e in (engine, plain)]
    assert engine.prefix._kept is not None and engine.prefix._kept.nbytes == 0
    assert all(torch.equal(a, b) for a, b in zip(*z, strict=True))


def test_states_lie_on_disk_for_nobody_else_and_damaged_ones_are_computed_again(
    tiny, records, tmp_path, kept
):
    run = halves(tiny, records, REUSE, f"compute.reuse_blocks_folder={tmp_path}")
    modes: list[int] = []

    def spoil() -> None:
        paths = sorted(tmp_path.rglob("*.safetensors"))
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in paths)
        for number, path in enumerate(paths):
            content = bytearray(path.read_bytes())
            if len(content) < 9:  # spoilt before, and not asked for since
                continue
            content[-3] ^= 1  # one bit of one number
            path.write_bytes([bytes(content), b"", bytes(content[:-7])][number % 3])

    run.server.training.after_round = spoil
    run.run()
    assert set(modes) == {0o600}
    assert same(run.server.engine.adapter(), kept.server.engine.adapter())
    run.server.end()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_full_or_none_is_told_and_changes_no_bit(
    tiny, records, tmp_path, kept, monkeypatch, caplog
):
    (tmp_path / "file").write_text("x")
    place = f"compute.reuse_blocks_folder={tmp_path / 'file'}"
    with caplog.at_level(logging.WARNING):
        none = halves(tiny, records, REUSE, place).run()
    (told,) = [r.getMessage() for r in caplog.records if "reuse_blocks_folder" in r.getMessage()]
    assert "training goes on" in told and str(tmp_path / "file") in told
    real, left = tensor_files.open_private, [5]

    def full(path: Path) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(tensor_files, "open_private", full)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        some = halves(tiny, records, REUSE, f"compute.reuse_blocks_folder={tmp_path}").run()
    (told,) = [r.getMessage() for r in caplog.records if "No space left" in r.getMessage()]
    assert "computed again" in told
    for run in (none, some):
        assert same(run.server.engine.adapter(), kept.server.engine.adapter())


def test_nothing_is_kept_of_rows_that_a_device_does_not_name(tiny, records):
    run = halves(tiny, records, REUSE, "train.rounds=1")
    store = run.server.engine.prefix._kept
    assert store is not None
    rows = batch(run.server.engine, [[0] * len(run.server.engine.projections)] * 3)
    run.server.engine.forward([dataclasses.replace(r, keepable=False) for r in rows], train=False)
    assert store.nbytes == 0
    run.server.engine.forward(rows, train=False)
    assert store.nbytes > 0


def test_it_needs_what_devices_are_asked_by(tiny, records):
    with pytest.raises(FedloraError, match=r"compute.reuse_blocks .* link.reuse"):
        scenario(tiny["gpt2"], records, REUSE, "link.reuse=false")


def test_robust_averages_train_the_same(tiny, records):
    more = ("robust.average=median", "robust.hostile=1", "train.rounds=1")
    runs = [halves(tiny, records, *more, *extra).run() for extra in ((), (REUSE,))]
    assert losses(runs[0])[0][0] == pytest.approx(losses(runs[1])[0][0], rel=1e-5)
