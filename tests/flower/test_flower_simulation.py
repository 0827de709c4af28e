"""Real Flower, real Ray: a run over Flower gives what the in-process federation gives.

That ``fedlora run`` does, with plug-ins of a stranger's, is in ``tests/scaffold``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from support.flower_runs import FEDLORA, PATIENCE_S, adapter_in, adapter_of, flwr_run, same
from support.patience import patient

from fedlora.config import scenario_from_toml, scenario_to_toml, with_overrides
from fedlora.errors import FedloraError
from fedlora.launch.guarded import runs
from fedlora.launch.simulation import SIMULATES
from fedlora.report import RunFolder
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
[compute]
threads = 1
[evaluate]
baseline = true
"""


def write_tiny(folder: Path, *overrides: str) -> Path:
    scenario = folder / "tiny.toml"
    scenario.write_text(scenario_to_toml(with_overrides(scenario_from_toml(SCENARIO), overrides)))
    return scenario


@pytest.mark.e2e
def test_flwr_run_at_the_root_takes_any_number_of_supernodes_and_hosts(tmp_path):
    """The adapter is bit for bit that of the federation in this process."""
    scenario = write_tiny(tmp_path, "federation.clients=3", "compute.edge_hosts=2")
    out = tmp_path / "run"
    flwr_run(ROOT, tmp_path / "flwr", CLIENTS, f'scenario="{scenario}"', out)
    expected = run(scenario_from_toml(scenario.read_text()), Record())
    assert same(adapter_of(out), adapter_in(expected))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["clients"] == 3
    assert summary["metric_before"] == expected.training.outcome.before is not None


@dataclass(frozen=True)
class Begun:
    """A long run whose first round is done, with its descendants and its temporary folder."""

    process: subprocess.Popen[str]
    family: list[psutil.Process]
    temporary: Path

    @property
    def server(self) -> psutil.Process:
        return next(p for p in self.family if runs(p, SIMULATES))

    @property
    def hosts(self) -> list[psutil.Process]:
        return [p for p in self.family if " ".join(p.cmdline()).startswith("ray::EdgeHost")]

    def assert_nothing_is_left(self) -> None:
        psutil.wait_procs(self.family, timeout=patient(120))
        left = [p for p in self.family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert left == []
        assert list(self.temporary.glob("fedlora-*")) == []


@contextmanager
def begun(folder: Path, out: Path) -> Iterator[Begun]:
    with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:  # Ray needs a short path
        process = subprocess.Popen(
            [
                *(FEDLORA, "run", write_tiny(folder, "evaluate.baseline=false"), "--out", out),
                *("--set", "train.rounds=500"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            # A test run that was put into the background ignores SIGINT, and children inherit that.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
            env={**os.environ, "TMPDIR": temporary, "RAY_ADDRESS": "127.0.0.1:1"},  # not its own
        )
        family: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + patient(PATIENCE_S)
            while not RunFolder(out).read_metrics():
                assert process.poll() is None and time.monotonic() < deadline, out
                time.sleep(0.2)
            family = psutil.Process(process.pid).children(recursive=True)
            yield Begun(process, family, Path(temporary))
        finally:
            process.kill()
            process.communicate(timeout=patient(60))
            for left in family:
                with suppress(psutil.NoSuchProcess):
                    left.kill()


@pytest.mark.slow
@pytest.mark.e2e
def test_an_interrupted_run_keeps_its_rounds_and_leaves_no_process(tmp_path):
    out = tmp_path / "run"
    with begun(tmp_path, out) as run_:
        run_.process.send_signal(signal.SIGINT)
        output, _ = run_.process.communicate(timeout=patient(PATIENCE_S))
        assert run_.process.returncode == 130, output
        assert "Traceback" not in output
        run_.assert_nothing_is_left()
    summary = json.loads((out / "summary.json").read_text())
    assert 1 <= summary["rounds"] < 500
    assert (out / "report.html").exists()
    assert (out / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_holds_its_folder_until_then(tmp_path):
    out = tmp_path / "run"
    with begun(tmp_path, out) as run_:
        run_.server.suspend()  # so that it is there while the folder is asked for
        run_.process.kill()
        run_.process.wait()
        for opened in (RunFolder.create, RunFolder.reopen):
            with pytest.raises(FedloraError, match="earlier run still writes to"):
                opened(out)
        run_.assert_nothing_is_left()
    assert RunFolder.reopen(out).read_metrics()


@pytest.mark.e2e
@pytest.mark.parametrize("whose", ["host", pytest.param("server", marks=pytest.mark.slow)])
def test_a_run_of_which_a_process_is_killed_names_it_at_once_and_keeps_its_rounds(tmp_path, whose):
    """In a folder whose name has all the characters that a command line may stumble over."""
    out = tmp_path / """a"b 'ü' $x"""
    with begun(tmp_path, out) as run_:
        killed = run_.server if whose == "server" else run_.hosts[0]
        killed.kill()
        output, _ = run_.process.communicate(timeout=patient(60.0))
        assert run_.process.returncode == 2, output
        told = " ".join(output.split())
        who = "the server's process " if whose == "server" else "fedlora: the edge host (process "
        assert f"{who}{killed.pid}" in told
        assert "was ended without a word, as by signal 9" in told and "memory ran out" in told
        assert "go on with it by: fedlora resume" in told
        run_.assert_nothing_is_left()
    if whose == "server":  # whose log Flower has
        assert "simulated SuperNodes" in (out / "flower.txt").read_text()
    assert json.loads((out / "summary.json").read_text())["rounds"] >= 1
