"""Runs through Flower's own command and through ``fedlora run``, each with a home of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from fedlora.launch.guarded import free_port
from fedlora.server.results import export
from fedlora.server.run import ServerRun
from support.patience import patient

FEDLORA = Path(sys.executable).with_name("fedlora")
PATIENCE_S = 600.0  # on a busy machine Flower and Ray take minutes
# The command itself, but for the 15 s within which it wants its SuperLink to have started.
_FLWR = f"""
import sys
from flwr.cli import local_superlink
from flwr.cli.app import app

local_superlink.LOCAL_SUPERLINK_STARTUP_TIMEOUT = {PATIENCE_S}
sys.argv[0] = "flwr"
app()
"""


def flwr_run(app: Path, home: Path, nodes: int, run_config: str, out: Path) -> str:
    """Run an app on a local SuperLink, wait for its report, and end what Flower left running.

    Parameters
    ----------
    app
        The app's folder.
    home
        Becomes ``FLWR_HOME``.
    nodes
        Number of SuperNodes.
    run_config
        As on the command line; the run folder is added.
    out
        The run folder.

    Returns
    -------
    str
        What the command printed.
    """
    environment = {
        **os.environ,
        # As in an activated environment: flwr looks for flower-superlink on the path.
        "PATH": os.pathsep.join([str(FEDLORA.parent), os.environ["PATH"]]),
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-c", _FLWR, "run", ".", "--stream"),
                *("--federation-config", f"num-supernodes={nodes} client-resources-num-cpus=1"),
                *("--run-config", f'{run_config} out="{out}"'),
            ],
            env=environment,
            cwd=app,
            capture_output=True,
            text=True,
            timeout=patient(PATIENCE_S),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Exit Code" not in done.stdout, done.stdout  # of the app's own process
        deadline = time.monotonic() + patient(PATIENCE_S)
        while not (out / "report.html").exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert (out / "report.html").exists(), done.stdout
    finally:
        _end_processes_of(home)
    return done.stdout


def adapter_of(run: Path) -> dict[str, torch.Tensor]:
    """Return the factors of each projection in a run folder, A and B in one row."""
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    prefix, end = "base_model.model.", ".lora_A.weight"
    names = [n[len(prefix) : -len(end)] for n in tensors if n.endswith(end)]
    return {
        name: _row(*(tensors[f"{prefix}{name}.lora_{side}.weight"] for side in "AB"))
        for name in names
    }


def adapter_in(server: ServerRun) -> dict[str, torch.Tensor]:
    """Return the same of a run in this process."""
    return {name: _row(A, B) for name, (A, B) in export(server).factors.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _row(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    return torch.cat([A.flatten(), B.flatten()])


def _end_processes_of(home: Path) -> None:
    """End what Flower left running: the SuperLink goes on after its run."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == str(home):
                process.terminate()
