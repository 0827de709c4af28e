"""The run folder stays readable whatever interrupts the writer."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedlora.errors import FedloraError
from fedlora.report import RunFolder
from fedlora.server.checkpoint import Checkpoints


def test_rounds_come_back_as_they_were_written(tmp_path, make_rounds):
    folder = RunFolder.create(tmp_path / "run")
    rounds = make_rounds(rounds=3)
    for record in rounds:
        folder.append_round(record)
    assert folder.read_metrics() == rounds
    lines = folder.metrics.read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]


def test_torn_last_line_is_left_out_and_does_not_spoil_the_next(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.append_round({"round": 1, "step": 5})
    with folder.metrics.open("ab") as file:
        file.write(b'{"round":2,"step":1')
    assert [r["round"] for r in folder.read_metrics()] == [1]
    folder.append_round({"round": 2, "step": 10})
    assert [(r["round"], r["step"]) for r in folder.read_metrics()] == [(1, 5), (2, 10)]


def test_every_prefix_of_the_metrics_file_can_be_read(tmp_path, make_rounds):
    folder = RunFolder.create(tmp_path)
    for record in make_rounds(rounds=3, clients=1):
        folder.append_round(record)
    whole = folder.metrics.read_bytes()
    for length in range(0, len(whole) + 1, 7):
        folder.metrics.write_bytes(whole[:length])
        assert len(folder.read_metrics()) == whole[:length].count(b"\n")


def test_round_repeated_after_a_resume_counts_once(tmp_path):
    folder = RunFolder.create(tmp_path)
    for number, loss in ((1, 3.0), (2, 2.0), (3, 1.5), (2, 2.1)):
        folder.append_round({"round": number, "loss": loss})
    assert [(r["round"], r["loss"]) for r in folder.read_metrics()] == [
        (1, 3.0),
        (2, 2.1),
        (3, 1.5),
    ]


def test_rounds_that_are_about_to_be_repeated_are_gone_from_the_file(tmp_path):
    folder = RunFolder.create(tmp_path)
    for number in (1, 2, 3, 4):
        folder.append_round({"round": number, "loss": 1.0 / number})
    folder.forget_rounds_after(2)
    folder.append_round({"round": 3, "loss": 0.5})
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [(r["round"], r["loss"]) for r in lines] == [(1, 1.0), (2, 0.5), (3, 0.5)]
    folder.forget_rounds_after(0)
    assert folder.read_metrics() == []


def test_not_finite_and_numpy_values_become_valid_json(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.append_round(
        {"round": np.int64(1), "loss": math.nan, "metric": np.float32(0.5), "seconds": math.inf}
    )

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    record = json.loads(folder.metrics.read_text(), parse_constant=refuse)
    assert record == {"round": 1, "loss": None, "metric": 0.5, "seconds": None}


def test_events_are_followed_from_an_offset_and_a_half_written_one_waits(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.append_event("phase", name="train", rounds=1, steps=2)
    events, offset = folder.read_events()
    assert [e["event"] for e in events] == ["phase"]
    with folder.events.open("ab") as file:
        file.write(b'{"event":"st')
        file.flush()
        assert folder.read_events(offset) == ([], offset)
        file.write(b'ep","step":1}\n')
    events, end = folder.read_events(offset)
    assert [e["step"] for e in events] == [1]
    assert end == folder.events.stat().st_size


def test_events_of_a_folder_that_does_not_exist_are_none(tmp_path):
    folder = RunFolder(tmp_path / "later")
    assert folder.read_events() == ([], 0)
    assert folder.read_metrics() == []
    assert folder.read_summary() is None


def test_summary_is_whole_whenever_the_writer_is_killed(tmp_path, make_summary, make_rounds):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_summary(make_summary(make_rounds(rounds=1)))
    program = (
        "import sys\n"
        "from fedlora.report.run_folder import RunFolder\n"
        "from fedlora.report.summary import Summary\n"
        "folder = RunFolder(sys.argv[1])\n"
        "summary = Summary.from_rounds([], metric_name='m', higher_is_better=True, clients=1,\n"
        "    seed=0, trainable_parameters=1, extra={'filler': 'x' * 200_000})\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    folder.write_summary(summary)\n"
    )
    for delay_s in (0.0, 0.003, 0.011, 0.02):
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(folder.path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert json.loads(folder.summary.read_bytes())["metric_name"] in ("accuracy", "m")


def test_a_resume_shows_no_earlier_end_and_keeps_all_other_events_at_every_moment(tmp_path):
    """A process may be killed while it takes a run up again."""
    folder = RunFolder.create(tmp_path / "run")
    for client in range(50):
        folder.append_event("budget", client=str(client))
    folder.append_event("done", status="failed", text="no room")
    folder._lock.close()
    over = threading.Event()

    def resume() -> None:
        while not over.is_set():
            again = RunFolder.reopen(folder.path)
            assert [e["event"] for e in again.read_events()[0]] == ["budget"] * 50
            again.append_event("done", status="interrupted", text="")
            again._lock.close()

    with ThreadPoolExecutor(1) as pool:
        resumed = pool.submit(resume)
        try:
            for _ in range(300):
                seen = [e["client"] for e in folder.read_events()[0] if e["event"] == "budget"]
                assert seen == [str(client) for client in range(50)]
        finally:
            over.set()
        resumed.result()


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "scenario.toml").write_text("precious")
    with pytest.raises(FedloraError, match="choose another folder"):
        RunFolder.create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["scenario.toml"]
    assert (tmp_path / "scenario.toml").read_text() == "precious"


def test_earlier_run_is_replaced_but_a_strangers_file_stays(finished):
    (finished.path / "notes.txt").write_text("mine")
    finished.adapter.mkdir()
    (finished.adapter / "adapter_config.json").write_text("{}")
    finished._lock.close()
    again = RunFolder.create(finished.path, overwrite=True)
    assert sorted(p.name for p in again.path.iterdir()) == ["events.jsonl", "notes.txt"]
    assert again.read_events() == ([], 0)


def test_folder_of_a_run_that_goes_on_is_refused(finished):
    with pytest.raises(FedloraError, match="still going on"):
        RunFolder.create(finished.path)
    assert finished.read_summary() is not None


@pytest.mark.parametrize("opened", [partial(RunFolder.create, overwrite=True), RunFolder.reopen])
def test_folder_that_a_process_of_a_dead_run_still_writes_to_is_refused(finished, opened):
    """Who began the run is gone, and its lock with it; the process that trains is not."""
    finished._lock.close()
    server = Checkpoints(finished.checkpoint)
    server.hold()
    with pytest.raises(FedloraError, match="still writes to"):
        opened(finished.path)
    assert finished.read_summary() is not None
    server._lock.close()
    opened(finished.path)


def test_who_asks_whether_a_run_goes_on_keeps_nobody_from_going_on_with_it(tmp_path, monkeypatch):
    """``fedlora top`` holds the file for the moment of its look, and a resume may come then."""
    folder = RunFolder.create(tmp_path / "run")
    folder.release()
    with folder.events.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
        monkeypatch.setattr("fedlora.storage.files.time.sleep", lambda _: looking.close())
        resumed = RunFolder.reopen(folder.path)
    assert resumed.is_held()
    with pytest.raises(FedloraError, match="still going on"):
        RunFolder.reopen(folder.path)


def test_path_that_is_a_file_is_refused_with_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FedloraError, match=r"file is a file; name a folder$"):
        RunFolder.create(tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to act a full disk")
def test_full_disk_is_one_sentence_and_what_was_written_stays(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.append_round({"round": 1})
    kept = folder.metrics.rename(tmp_path / "kept")
    folder.metrics.symlink_to("/dev/full")
    with pytest.raises(FedloraError, match="No space left on device; free some space"):
        folder.append_round({"round": 2})
    kept.replace(folder.metrics)
    assert [r["round"] for r in folder.read_metrics()] == [1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_missing_permission_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FedloraError, match="choose a folder that you may write to"):
        RunFolder.create(tmp_path / "run")


def test_damaged_summary_reads_as_none(finished):
    finished.summary.write_text('{"metric": 0.')
    assert finished.read_summary() is None


def test_log_lines_reach_the_file(tmp_path):
    folder = RunFolder.create(tmp_path)
    handler = folder.log_handler()
    logger = logging.getLogger("fedlora.test_report")
    logger.addHandler(handler)
    try:
        logger.warning("client %s was lost", "client-3")
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert "WARNING fedlora.test_report: client client-3 was lost" in folder.log.read_text()
