"""A new app outside the repository, through fedlora's and through Flower's own command."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedlora.launch import free_port

pytestmark = pytest.mark.flower
FEDLORA = Path(sys.executable).with_name("fedlora")
SMALL = "train.rounds=1 train.steps=1 data.max_rows=120 evaluate.baseline=false"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "away-ranks"
    subprocess.run([FEDLORA, "new", folder, "--channel"], check=True, cwd=tmp_path)
    return folder


def end_processes_of(home: str) -> None:
    """End what Flower left running: the SuperLink goes on after its run."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == home:
                process.terminate()


def check_run(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (record,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert summary["bits"]["down"]["adapter"] > 0
    # Free or blocked by 10 dB around means of 0 and 5 dB: nobody else's channel.
    assert {c["snr_db"] for c in record["clients"].values()} <= {0.0, -10.0, 5.0, -5.0}
    assert "strategy" not in (folder / "log.txt").read_text()  # nothing that it was blamed for


def test_fedlora_run_takes_the_app_from_any_folder(app, tmp_path):
    overrides = [*SMALL.split(), "federation.clients=2"]
    command = [FEDLORA, "run", app / "scenario.toml", "--out", tmp_path / "run"]
    for setting in overrides:
        command += ["--set", setting]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_run(tmp_path / "run")


def test_the_commands_of_its_readme_check_and_compare_it(app):
    commands = {
        words[1] if words[0] == "fedlora" else words[0]: words
        for line in (app / "README.md").read_text().splitlines()
        if (words := shlex.split(line, comments=True)) and words[0] in ("python", "fedlora")
    }
    done = subprocess.run([sys.executable, *commands["python"][1:]], cwd=app, check=False)
    assert done.returncode == 0
    words = commands["compare"]
    words[words.index("--seeds") + 1] = "1"
    overrides = [word for setting in SMALL.split() for word in ("--set", setting)]
    done = subprocess.run(
        [FEDLORA, *words[1:], *overrides, "--set", "federation.clients=2"],
        cwd=app,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (app / "comparison" / "compare.csv").open() as stream:
        found = {(row["strategy"], row["snr_db"]) for row in csv.DictReader(stream)}
    names = ("away_ranks.strategy:AwayRanks", "greedy")
    assert found == {(name, snr) for name in names for snr in ("0.0", "10.0")}


def test_flwr_run_takes_the_app_with_its_scenario_and_its_plug_ins(app, tmp_path):
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(FEDLORA.parent), os.environ["PATH"]]),
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    run = tmp_path / "run"
    try:
        done = subprocess.run(
            [
                *(FEDLORA.with_name("flwr"), "run", ".", "--stream"),
                *("--federation-config", "num-supernodes=2 client-resources-num-cpus=1"),
                *("--run-config", f'set="{SMALL}" out="{run}"'),
            ],
            env=environment,
            cwd=app,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + 60
        while not (run / "report.html").exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        check_run(run)
        # The bundle's copy ran, as on any machine that Flower sends it to.
        assert str(tmp_path / "flwr" / "apps") in (run / "scenario.toml").read_text()
    finally:
        end_processes_of(environment["FLWR_HOME"])
