"""A run in surroundings that hide libraries, are long, and show ASCII alone: it is as any other."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from support.flower_runs import FEDLORA, PATIENCE_S, adapter_in, adapter_of, same
from support.patience import patient

from fedlora.config import load_scenario
from simulations.in_process import Record, run

pytestmark = [pytest.mark.flower, pytest.mark.e2e, pytest.mark.slow]
HIDDEN = ("datasets", "tokenizers", "torch", "flwr", "ray", "random", "json", "psutil", "clients")
SCENARIO = """
name = "größe"
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 24
[data]
train = "own.jsonl"
[federation]
clients = 2
[lora]
r_max = 4
[train]
rounds = 1
steps = 1
batch_size = 2
[evaluate]
baseline = false
[ranks]
strategy = "mine:Mine"
[compute]
threads = 1
edge_hosts = 1
"""


def test_a_run_is_the_same_where_libraries_have_namesakes_and_tmpdir_is_long(tmp_path, monkeypatch):
    here, long = tmp_path / "here", tmp_path / ("jobs/" + "1355700" * 12)
    here.mkdir()
    long.mkdir(parents=True)
    for name in HIDDEN:
        (here / f"{name}.py").write_text(f"raise RuntimeError('{name} of the user')")
    (here / "mine.py").write_text(
        "from strategies.uniform import Uniform\n"
        "class Mine(Uniform):\n"
        "    def __init__(self):\n"
        "        super().__init__(int(open('rank.txt').read()))\n"  # where the command was typed
    )
    (here / "rank.txt").write_text("2")
    classes = ["müde", "猫"]
    rows = [{"text": f"say {n} of it", "label": classes[n % 2]} for n in range(60)]
    (here / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (here / "tiny.toml").write_text(SCENARIO, encoding="utf-8")
    out = tmp_path / "run"
    done = subprocess.run(
        [FEDLORA, "run", "tiny.toml", "--out", out],
        cwd=here,
        env={**os.environ, "TMPDIR": str(long), "PYTHONIOENCODING": "ascii", "COLUMNS": "10"},
        capture_output=True,
        check=False,
        timeout=patient(PATIENCE_S),
    )
    words = "\n".join(file.read_text()[-3000:] for file in out.glob("*.txt"))
    assert done.returncode == 0, done.stderr.decode() + words
    assert b"leaves the sockets of Ray no" in done.stdout
    assert done.stdout.isascii()
    assert list(long.glob("fedlora-*")) == []
    scenario = load_scenario(out / "scenario.toml")
    assert scenario.python_path == str(here)  # so that `fedlora resume` finds it from anywhere
    monkeypatch.chdir(here)
    assert same(adapter_of(out), adapter_in(run(scenario, Record())))
