"""Real Flower, real Ray: the simulation gives what the in-process federation gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

from fedlora.config import scenario_from_toml, scenario_to_toml, with_overrides
from fedlora.launch import free_port
from fedlora.server.results import export
from simulations.in_process import Record, run

pytestmark = pytest.mark.flower
ROOT = Path(__file__).parents[2]
FEDLORA = Path(sys.executable).with_name("fedlora")
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

STRANGER = """
from fedlora.ranks import RankDecision, RankStrategy

class Everything(RankStrategy):
    def allocate(self, round, clients, space):
        return {client: RankDecision(space.uniform(space.r_max)) for client in clients}
"""


def tiny(*overrides: str):
    return with_overrides(scenario_from_toml(SCENARIO), overrides)


@pytest.fixture(scope="module")
def in_process_adapter() -> dict[str, torch.Tensor]:
    server = run(tiny(), Record())
    factors = export(server).factors
    return {name: torch.cat([A.flatten(), B.flatten()]) for name, (A, B) in factors.items()}


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    scenario = folder / "tiny.toml"
    scenario.write_text(scenario_to_toml(tiny(*overrides)))
    return subprocess.Popen(
        [FEDLORA, "run", scenario, "--out", folder / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        # A test run that was put into the background ignores SIGINT, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def saved(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    prefix, names = "base_model.model.", [n for n in tensors if n.endswith("lora_A.weight")]
    return {
        n[len(prefix) : -len(".lora_A.weight")]: torch.cat(
            [tensors[n].flatten(), tensors[n.replace("lora_A", "lora_B")].flatten()]
        )
        for n in names
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_simulation_equals_the_in_process_federation_bit_for_bit(tmp_path, in_process_adapter):
    output = finish(start(tmp_path, "compute.edge_hosts=1"))
    assert same(saved(tmp_path), in_process_adapter)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["clients"] == CLIENTS
    assert summary["steps"] == 4
    assert summary["metric_before"] is not None
    assert f"{summary['metric']:.3f}" in output
    assert len(json.loads((tmp_path / "run/summary.json").read_text())["label_counts"]) > 1
    report = (tmp_path / "run" / "report.html").read_text()
    assert "has not ended" not in report
    base = AutoModel.from_pretrained(ROOT / "simulations/quickstart/decoder")
    loaded = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    assert loaded.peft_config["default"].r == 4


def test_two_hosts_and_a_strangers_strategy_give_the_same_adapter(tmp_path, in_process_adapter):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "stranger.py").write_text(STRANGER)
    finish(
        start(
            tmp_path,
            "compute.edge_hosts=2",
            f"python_path={tmp_path / 'plugins'}",
            "ranks.strategy=stranger:Everything",
        )
    )
    assert same(saved(tmp_path), in_process_adapter)


def test_flwr_run_at_the_root_takes_any_number_of_supernodes(tmp_path, in_process_adapter):
    scenario = tmp_path / "tiny.toml"
    scenario.write_text(scenario_to_toml(tiny("federation.clients=3")))
    port = str(free_port())
    environment = {
        **os.environ,
        # As in an activated environment: flwr looks for flower-superlink on the path.
        "PATH": os.pathsep.join([str(FEDLORA.parent), os.environ["PATH"]]),
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    try:
        done = subprocess.run(
            [
                *(FEDLORA.with_name("flwr"), "run", ".", "--stream"),
                *("--federation-config", f"num-supernodes={CLIENTS} client-resources-num-cpus=1"),
                *("--run-config", f'scenario="{scenario}" out="{tmp_path / "run"}"'),
            ],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "report.html").exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert (tmp_path / "run" / "report.html").exists(), done.stdout
    finally:
        for process in psutil.process_iter(["cmdline"]):
            command = " ".join(process.info["cmdline"] or ())
            if "flower-superlink" in command and port in command:
                process.terminate()
    assert same(saved(tmp_path), in_process_adapter)


def test_an_interrupted_run_keeps_its_rounds_and_leaves_no_process(tmp_path):
    process = start(tmp_path, "train.rounds=500", "evaluate.baseline=false")
    metrics = tmp_path / "run" / "metrics.jsonl"
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
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 1 <= summary["rounds"] < 500
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
