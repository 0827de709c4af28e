"""A simulation whose processes are killed at once goes on with ``fedlora resume``."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.patience import patient

from fedlora.config import scenario_from_toml, scenario_to_toml
from fedlora.server.results import export
from simulations.in_process import Record, run

pytestmark = pytest.mark.e2e
FEDLORA = Path(sys.executable).with_name("fedlora")
SCENARIO = """
name = "tiny"
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 24
[data]
label = "intent"
max_rows = 90
[federation]
clients = 3
[train]
rounds = 6
steps = 3
batch_size = 2
[lora]
r_max = 4
[ranks]
strategy = "bandit"
[compute]
edge_hosts = 2
threads = 1
[evaluate]
baseline = true
"""


def resume(out: Path) -> subprocess.CompletedProcess[str]:
    """Resume a run; interrupted when it takes too long, so that it ends its own processes."""
    return subprocess.run(
        ["timeout", "--signal=INT", "280", FEDLORA, "resume", out],
        cwd=out.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_all_processes_killed_in_a_round_and_resumed_equal_an_uninterrupted_run(tmp_path):
    scenario = scenario_from_toml(SCENARIO)
    path, out = tmp_path / "tiny.toml", tmp_path / "run"
    path.write_text(scenario_to_toml(scenario))
    process = subprocess.Popen([FEDLORA, "run", path, "--out", out], cwd=tmp_path)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + patient(200)
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for member in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    assert not (out / "summary.json").exists()
    again = resume(out)
    assert again.returncode == 0, again.stdout + again.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds"] == 6
    server = run(scenario, record := Record())
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    for name, (A, B) in export(server).factors.items():
        assert torch.equal(saved[f"base_model.model.{name}.lora_A.weight"], A)
        assert torch.equal(saved[f"base_model.model.{name}.lora_B.weight"], B)
    assert summary["metric"] == record.rounds[-1]["metric"]
    assert summary["metric_before"] == server.training.outcome.before
    once_more = resume(out)
    assert once_more.returncode == 2
    assert "is finished" in once_more.stderr
