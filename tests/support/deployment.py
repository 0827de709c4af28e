"""A whole deployment on loopback: SuperLink and SuperNodes as processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import psutil

from fedlora.commands.certs import write_certificates
from fedlora.launch.simulation import free_port
from support.patience import patient

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
START_S = 90.0


class Deployment:
    """A SuperLink with TLS and node authentication, and its SuperNodes; all ended at the end.

    Parameters
    ----------
    folder
        For keys, logs and Flower's home.
    keys
        Nodes for which keys are made.
    """

    def __init__(self, folder: Path, keys: int = 3) -> None:
        self.folder = folder
        self.keys = keys
        self.port = free_port()
        self.certs = folder / "certs"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ,
            # Flower looks for its other tools there, as in an activated environment.
            "PATH": f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "no_proxy": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Deployment:
        write_certificates(self.certs, ["127.0.0.1"], self.keys)
        home = self.folder / "flwr"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink.fedlora]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.certs / "ca.crt"}"\n'
        )
        self.start(
            "superlink",
            "flower-superlink",
            *("--host", "127.0.0.1", "--port", str(self.port), "--enable-supernode-auth"),
            *("--ssl-ca-certfile", str(self.certs / "ca.crt")),
            *("--ssl-certfile", str(self.certs / "server.pem")),
            *("--ssl-keyfile", str(self.certs / "server.key")),
        )
        self.until(lambda: self.flwr("list", "fedlora").returncode == 0, "the SuperLink")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end(*self.processes)

    def start(
        self, name: str, tool: str, *arguments: str, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start one of Flower's processes; its words go to ``NAME.txt``."""
        with (self.folder / f"{name}.txt").open("ab") as log:
            process = subprocess.Popen(
                [TOOLS / tool, *arguments],
                env=self.environment | environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def register(self, node: int) -> None:
        """Make a node's key known to the SuperLink."""
        done = self.flwr("supernode", "register", str(self.certs / f"node{node}.pub"), "fedlora")
        assert done.returncode == 0, done.stdout + done.stderr

    def supernode(self, node: int, config: str, **environment: str) -> None:
        """Start a SuperNode with its key; without data of its own it reads the scenario's."""
        if "data=" not in config:
            config += ' scenario-data="true"'
        if "state=" not in config:
            config += f' state="{self.states(node)}"'
        self.nodes[node] = self.start(
            f"node{node}",
            "flower-supernode",
            *("--superlink", f"127.0.0.1:{self.port}"),
            *("--root-certificates", str(self.certs / "ca.crt")),
            *("--auth-supernode-private-key", str(self.certs / f"node{node}")),
            *("--host", "127.0.0.1", "--port", str(free_port())),
            *("--node-config", config),
            **environment,
        )

    def states(self, node: int) -> Path:
        """Return the folder where a node keeps its states, its log and its audit file."""
        return self.folder / f"states{node}"

    def restart(self, node: int, config: str) -> None:
        """End a SuperNode and start it again with another configuration."""
        end(self.nodes[node])
        self.supernode(node, config)

    def supernode_comes_up(self, node: int, config: str) -> None:
        """Start a SuperNode until the SuperLink takes it, as its service unit does.

        The SuperLink refuses a node that it holds for connected, which it does for a while after
        a node has died.
        """
        log = self.folder / f"node{node}.txt"
        before = log.read_text().count("SuperNode ID")

        def up() -> bool:
            if self.nodes[node].poll() is not None:
                self.supernode(node, config)
            return log.read_text().count("SuperNode ID") > before

        self.until(up, f"node {node}", 240)

    def cut_power(self, node: int) -> None:
        """Kill a SuperNode and all that it runs, without warning."""
        supernode = psutil.Process(self.nodes[node].pid)
        for process in [supernode, *supernode.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def kill_client_app(self, node: int) -> None:
        """Kill the ClientApp that a SuperNode runs at the moment, without warning."""
        children = psutil.Process(self.nodes[node].pid).children(recursive=True)
        apps = [p for p in children if "flwr-clientapp" in _command(p)]
        assert apps, "no ClientApp is running"
        for app in apps:
            app.kill()

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Flower's command line."""
        return subprocess.run(
            [TOOLS / "flwr", *arguments],
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patient(START_S),
            check=False,
        )

    def run(self, scenario: Path, out: Path) -> None:
        """Submit a run."""
        done = self.flwr(
            "run", ".", "fedlora", "--run-config", f'scenario="{scenario}" out="{out}"'
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def ended(self, out: Path, timeout_s: float) -> dict[str, str]:
        """Wait until a run has ended; return its last event."""
        found: dict[str, str] = {}

        def over() -> bool:
            found.update(last_event(out))
            return found.get("event") == "done"

        self.until(over, f"the end of the run in {out}", timeout_s)
        return found

    def until(self, condition, what: str, timeout_s: float = START_S) -> None:
        """Wait for a condition; fail with everybody's last words when it does not come."""
        deadline = time.monotonic() + patient(timeout_s)
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come in time\n{self.words()}"
            time.sleep(0.5)

    def words(self) -> str:
        """Return the last lines of every log."""
        logs = sorted(self.folder.rglob("*.txt"))
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in logs)


def end(*processes: subprocess.Popen[bytes]) -> None:
    """End processes with all their descendants."""
    family = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            family += [*parent.children(recursive=True), parent]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=5)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def last_event(out: Path) -> dict[str, str]:
    """Return the last event of a run folder."""
    events = sorted(out.glob("*events*"))
    if not events:
        return {}
    lines = events[0].read_text().splitlines()
    return json.loads(lines[-1]) if lines else {}


def _command(process: psutil.Process) -> str:
    """Return a process's command line; empty for one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
