"""``fedlora rehearse``: what it refuses, and a whole deployment that a kill does not end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from support.deployment import ROOT, TOOLS
from support.patience import patient

from fedlora.commands.deploy.rehearsal import plan_rehearsal
from fedlora.errors import FedloraError
from fedlora.site.history import read_history

TINY = [
    *("data.max_rows=160", "task.max_length=24", "train.rounds=3", "train.steps=6"),
    *("train.batch_size=2", "lora.r_max=2", "ranks.strategy=uniform", "link.give_up_s=3"),
    "evaluate.baseline=false",
]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kill": True, "overrides": ["train.rounds=1"]}, "train.rounds is 1, and --kill"),
        ({"data": ["a.csv"]}, "--data names 1 files for 3 nodes"),
        ({"keys": ["state=/tmp"]}, "the rehearsal sets it itself"),
        ({"keys": ["retention"]}, "write KEY=VALUE"),
        ({"keys": ["retentoin=false"]}, "did you mean retention?"),
        ({"keys": ["privacy-epsilon=2"]}, "set data instead"),
        ({"overrides": ["federation.clients_per_round=5"]}, "clients_per_round"),
        ({"overrides": ["data.train=/nowhere.csv"]}, "/nowhere.csv"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused_before_anything_starts(changed, said):
    asked = {"data": [], "keys": [], "overrides": [], "kill": False} | changed
    with pytest.raises(FedloraError, match=said):
        plan_rehearsal("quickstart", 3, **asked)


def test_there_are_as_many_clients_as_nodes_and_a_kill_pauses_the_run():
    plan = plan_rehearsal("quickstart", 2, [], [], TINY, kill=False)
    assert plan.scenario.federation.clients == len(plan.keys) == 2
    assert (
        plan_rehearsal("quickstart", 3, [], [], TINY, kill=True).scenario.federation.min_clients
        == 3
    )


def words(out: Path, *more: str) -> list[str | Path]:
    sets = [word for key in TINY for word in ("--set", key)]
    return [TOOLS / "fedlora", "rehearse", "quickstart", "--out", out, *sets, *more]


@pytest.mark.slow
@pytest.mark.e2e
def test_a_killed_device_comes_back_and_nothing_is_left_running(tmp_path):
    out = tmp_path / "run"
    done = subprocess.run(
        words(out, "--nodes", "3", "--kill"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(500),
    )
    logs = "".join(p.read_text()[-2000:] for p in sorted((out / "rehearsal").glob("*.txt")))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert "device 2 is killed in round" in done.stdout
    assert "Recovered: device 2" in done.stdout
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rounds] == [1, 2, 3]
    assert rounds[-1]["clients"]["2"]["rows"] == 12
    sessions = read_history(out / "rehearsal" / "states2").sessions
    assert "killed" in sessions[0].state and sessions[-1].state == "finished"
    ledgers = {p.name for p in (out / "rehearsal").glob("ledger*") if p.is_file()}
    assert {"ledger0", "ledger1", "ledger2"} <= ledgers
    assert not (out / "rehearsal" / "certs").exists()
    assert using(out) == []


@pytest.mark.e2e
def test_everything_ends_with_the_command_even_by_signal_9(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        words(out, "--nodes", "1", "--set", "train.rounds=500"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + patient(240)
        while not (out / "metrics.jsonl").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        assert len(using(out)) >= 4
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + patient(60)
    while left := using(out):
        assert time.monotonic() < deadline, [p.cmdline() for p in left]
        time.sleep(0.5)


def using(out: Path) -> list[psutil.Process]:
    """Return the processes that name a run's folder in their command line or FLWR_HOME."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME", "").startswith(str(out)):
                found.append(process)
        except psutil.Error:
            continue
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
