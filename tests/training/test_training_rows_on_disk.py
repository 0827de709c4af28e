"""``link.reuse_folder``: kept rows are on disk, private, deleted, and change nothing."""

from __future__ import annotations

import errno
import gc
import logging
import stat
from pathlib import Path

import pytest
import torch
from support.federation import Federation, same, scenario

from fedlora.check import check_scenario
from fedlora.errors import FedloraError
from fedlora.storage import tensor_files

LONG = ["train.rounds=3", "train.steps=8"]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def on_disk(tiny, records, folder: Path, *more: str) -> Federation:
    task = ["task.kind=causal_lm", *LONG, f"link.reuse_folder={folder}"]
    return Federation(scenario(tiny["gpt2"], records, *task, *more))


@pytest.fixture(scope="module")
def in_memory(tiny, records):
    return Federation(scenario(tiny["gpt2"], records, "task.kind=causal_lm", *LONG)).run()


def equal(first: Federation, second: Federation) -> bool:
    alike = same(first.server.engine.adapter(), second.server.engine.adapter())
    bits = [run.server.air.ledger.totals()["bits"] for run in (first, second)]
    return alike and bits[0] == bits[1]


def test_rows_lie_there_for_nobody_else_and_are_deleted_at_the_end(
    tiny, records, tmp_path, in_memory
):
    run = on_disk(tiny, records, tmp_path)
    seen: list[set[int]] = []
    run.server.training.after_round = lambda: seen.append(
        {stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)}
        | {stat.S_IMODE(path.parent.stat().st_mode) for path in files(tmp_path)}
    )
    run.run()
    assert seen == [{0o600, 0o700}] * 3
    assert equal(run, in_memory)
    run.server.end()
    assert list(tmp_path.iterdir()) == []


def test_a_client_that_leaves_takes_its_rows_along(tiny, records, tmp_path):
    run = on_disk(tiny, records, tmp_path).run()
    kept = run.server.training.batches.kept
    clients = {path.parent.name for path in files(tmp_path)}
    assert clients == {"0", "1", "2"}
    kept.retain(["1"])
    assert {path.parent.name for path in files(tmp_path)} == {"1"}
    kept.close()


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_row_that_is_gone_or_damaged_is_asked_for_again(
    tiny, records, tmp_path, in_memory, damage
):
    run = on_disk(tiny, records, tmp_path)

    def spoil() -> None:
        for path in files(tmp_path)[::2]:
            if damage == "gone":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:-7])

    run.server.training.after_round = spoil
    run.run()
    assert same(run.server.engine.adapter(), in_memory.server.engine.adapter())
    more, once = (
        r.server.air.ledger.totals()["bits"]["up"]["activation"] for r in (run, in_memory)
    )
    assert more > once


def test_a_full_disk_is_told_once_and_the_run_goes_on(
    tiny, records, tmp_path, in_memory, monkeypatch, caplog
):
    real, left = tensor_files.open_private, [5]

    def full(path: Path) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(tensor_files, "open_private", full)
    with caplog.at_level(logging.WARNING):
        run = on_disk(tiny, records, tmp_path).run()
    assert same(run.server.engine.adapter(), in_memory.server.engine.adapter())
    told = [r.getMessage() for r in caplog.records if "No space left" in r.getMessage()]
    assert len(told) == 1 and "clients send them again" in told[0]
    assert len(files(tmp_path)) == 5


def test_what_a_killed_run_left_is_deleted_and_a_living_ones_is_not(tiny, records, tmp_path):
    left = tmp_path / "fedlora-rows-dead"
    left.mkdir()
    (left / ".lock").touch()
    living = on_disk(tiny, records, tmp_path)
    other = on_disk(tiny, records, tmp_path)
    assert not left.exists() and len(list(tmp_path.iterdir())) == 2
    del other
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 1
    living.server.training.batches.close()


def test_a_run_that_begins_is_not_swept_by_another_that_begins(tmp_path, monkeypatch):
    """Before it holds its lock, a moment after it has made it."""
    hold = tensor_files.lock_file

    def made(path: Path):
        path.touch()
        tensor_files._sweep(tmp_path)
        return hold(path)

    monkeypatch.setattr(tensor_files, "lock_file", made)
    kept = tensor_files.TensorFiles(tmp_path, "it is asked for again")
    monkeypatch.undo()
    tensor_files.TensorFiles(tmp_path, "it is asked for again")
    assert kept.write("0", "1", {"row": torch.ones(2)})
    assert kept.read("0", "1")["row"].tolist() == [1, 1]


def test_a_folder_that_is_none_is_refused_before_the_run(tiny, records, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(FedloraError, match=r"link.reuse_folder is .*file is a file; name a"):
            check_scenario(scenario(tiny["gpt2"], records, f"link.reuse_folder={place}"))
    check_scenario(scenario(tiny["gpt2"], records, f"link.reuse_folder={tmp_path / 'new' / 'one'}"))
    assert not (tmp_path / "new").exists()
    with pytest.raises(FedloraError, match=r"cannot write .*; choose"):
        on_disk(tiny, records, tmp_path / "file" / "deeper")
