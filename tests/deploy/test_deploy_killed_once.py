"""Who is killed goes on with few bits at the cut, too, as promised: server and devices, kill -9."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.patience import patient

from fedlora.config import Scenario, scenario_from_toml, scenario_to_toml, with_overrides
from fedlora.server.results import export
from simulations.in_process import Record, run

pytestmark = pytest.mark.e2e
SCENARIO = """
[model]
path = "package:simulations/quickstart/decoder"
[task]
kind = "causal_lm"
max_length = 12
[data]
label = "intent"
max_rows = 60
[partition]
kind = "iid"
[federation]
clients = 3
min_clients = 3
connect_timeout_s = 100
[train]
rounds = 4
steps = 4
batch_size = 4
[lora]
r_max = 2
[link]
activation = "rotated"
representation = "entropy"
gradient = "entropy"
step_timeout_s = 60
give_up_s = 0.5
[evaluate]
baseline = false
every = 4
[compute]
threads = 1
"""
TENTH = 10  # step, in the third pass of each client


def tiny(*overrides: str) -> Scenario:
    return with_overrides(scenario_from_toml(SCENARIO), overrides)


def killed(home: Path, victim: str, step: int, *overrides: str) -> tuple[Any, Any]:
    """Run real processes, of which one is killed; return the adapter and the rounds."""
    file = home.with_suffix(".toml")
    file.write_text(scenario_to_toml(tiny(*overrides)))
    done = subprocess.run(
        [sys.executable, "-m", "support.killed_once", file, home, victim, str(step)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(280),
    )
    assert done.returncode == 0, done.stderr
    assert (home / "killed").exists() == (step > 0)
    out = Path(done.stdout.splitlines()[-1])
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return load_file(out / "adapter" / "adapter_model.safetensors"), rounds


def representations(rounds: list[dict[str, Any]]) -> list[int]:
    return [record["bits"]["down"]["representation"] for record in rounds]


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_a_server_that_is_killed_in_a_step_ends_in_the_undisturbed_runs_adapter(tmp_path):
    adapter, rounds = killed(tmp_path / "killed", "engine", TENTH)
    server = run(tiny(), record := Record())
    assert [r["round"] for r in rounds] == [1, 2, 3, 4]
    for name, (A, B) in export(server).factors.items():
        assert torch.equal(adapter[f"base_model.model.{name}.lora_A.weight"], A)
        assert torch.equal(adapter[f"base_model.model.{name}.lora_B.weight"], B)
    expected = representations(record.rounds)
    assert representations(rounds) == expected and expected[2] < 0.9 * expected[0]


def test_a_device_that_is_killed_in_a_step_misses_what_it_would_without_residuals(tmp_path):
    """It is left out of what is left of the round, as the docs say, and sent all whole again."""
    left, rounds = killed(tmp_path / "left", "1", TENTH)
    whole, others = killed(tmp_path / "whole", "1", TENTH, "link.residual_mib=0")
    assert same(left, whole)
    for found in (rounds, others):
        assert [r["lost"] for r in found] == [[], [], ["1"], []]
        assert [r["clients"]["1"]["rows"] for r in found] == [16, 16, 4, 16]
    few, all_ = representations(rounds), representations(others)
    assert few[0] == all_[0] and all(a < 0.9 * b for a, b in zip(few[1:], all_[1:], strict=True))
