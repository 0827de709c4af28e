"""Real Flower, real Ray: a run over Flower gives what the in-process federation gives.

That ``fedlora run`` does, with plug-ins of a stranger's, is in ``tests/scaffold``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from flower_runs import FEDLORA, adapter_in, adapter_of, flwr_run, same

from fedlora.config import scenario_from_toml, scenario_to_toml, with_overrides
from simulations.in_process import Record, run

pytestmark = pytest.mark.flower
ROOT = Path(__file__).parents[2]
CLIENTS = 5

SCENARIO = """
name = "tiny"
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 24
[data]
label = "intent"
max_rows = 160
[federation]
clients = 5
[train]
rounds = 2
steps = 2
batch_size = 2
[head]
share = "step"
[lora]
r_max = 4
[evaluate]
baseline = true
"""


def write_tiny(folder: Path, *overrides: str) -> Path:
    scenario = folder / "tiny.toml"
    scenario.write_text(scenario_to_toml(with_overrides(scenario_from_toml(SCENARIO), overrides)))
    return scenario


def test_flwr_run_at_the_root_takes_any_number_of_supernodes_and_hosts(tmp_path):
    """The adapter is bit for bit that of the federation in this process."""
    scenario = write_tiny(tmp_path, "federation.clients=3", "compute.edge_hosts=2")
    out = tmp_path / "run"
    flwr_run(ROOT, tmp_path / "flwr", CLIENTS, f'scenario="{scenario}"', out)
    expected = run(scenario_from_toml(SCENARIO), Record())
    assert same(adapter_of(out), adapter_in(expected))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["clients"] == CLIENTS
    assert summary["metric_before"] == expected.training.outcome.before is not None


def test_an_interrupted_run_keeps_its_rounds_and_leaves_no_process(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(FEDLORA, "run", write_tiny(tmp_path, "evaluate.baseline=false"), "--out", out),
            *("--set", "train.rounds=500"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        # A test run that was put into the background ignores SIGINT, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not metrics.exists():
        time.sleep(0.2)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    psutil.wait_procs(family, timeout=10)
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    summary = json.loads((out / "summary.json").read_text())
    assert 1 <= summary["rounds"] < 500
    assert (out / "report.html").exists()
    assert (out / "adapter" / "adapter_model.safetensors").exists()
