"""Starting a run through Flower's simulation: a SuperLink of its own, on ports of its own.

Two runs at once do not meet: each has its own FLWR_HOME, SuperLink, port and Ray. All processes are
the children of one guard (``fedlora.guard``), and whatever happens they are ended together.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from fedlora import __version__
from fedlora.errors import FedloraError
from fedlora.guard import END_S
from fedlora.link.listen import check_listens

TOOLS = Path(sys.executable).parent
"""Where Flower's commands are."""

_CONNECTION = "fedlora"
_START_S = 180.0  # on a loaded machine each of Flower's processes takes tens of seconds

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Server and edge hosts take turns: whoever waits must not spin on a core that the other needs.
    "OMP_WAIT_POLICY": "PASSIVE",
}

_APP = f"""\
[project]
name = "fedlora-run"
version = "{__version__}"
description = "A fedlora run"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedlora"

[tool.flwr.app.components]
serverapp = "fedlora.server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
prepared = true
"""


@dataclass(frozen=True)
class SimulationRequest:
    """What to run.

    Attributes
    ----------
    scenario
        Path of a scenario file.
    out
        Run folder, already made.
    clients
        Number of simulated clients.
    """

    scenario: Path
    out: Path
    clients: int


class FlowerSimulation:
    """A SuperLink in simulation mode with one run, as a context manager.

    Parameters
    ----------
    request
        What to run.

    Raises
    ------
    FedloraError
        When Flower does not start.
    """

    def __init__(self, request: SimulationRequest) -> None:
        self.request = request
        self._home = tempfile.TemporaryDirectory(
            prefix="fedlora-flower-", ignore_cleanup_errors=True
        )
        self._guard: subprocess.Popen[bytes] | None = None
        self._submitted = time.monotonic()
        self._begun = False
        self.log = request.out / "flower.txt"

    def __enter__(self) -> FlowerSimulation:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the SuperLink is still there."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def working(self) -> bool:
        """Whether the SuperLink is there and still has a process for the run."""
        if not self.running or self._guard is None:
            return False
        try:
            family = psutil.Process(self._guard.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return False
        there = any(map(_simulates, family))
        self._begun |= there
        return there or (not self._begun and time.monotonic() < self._submitted + _START_S)

    def stop(self) -> None:
        """End the SuperLink, the run and its Ray."""
        if self._guard is not None:
            _let_go(self._guard)
            _end_users_of(self._home.name)
            self._guard = None
        self._home.cleanup()

    def _start(self) -> None:
        home = Path(self._home.name)
        # Paths go into the app's own file: Flower's command line takes none with a quote in it.
        paths = {"scenario": self.request.scenario, "out": self.request.out}
        project = _APP + "".join(f"{key} = {_quoted(path)}\n" for key, path in paths.items())
        # Flower starts its helpers by name, also where the virtual environment is not activated.
        path = f"{TOOLS}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        # Flower's parts speak HTTP on loopback, which no proxy can carry.
        direct = ",".join(filter(None, ["127.0.0.1,localhost", os.environ.get("no_proxy")]))
        environment = {
            **os.environ,
            **_QUIET,
            **{"FLWR_HOME": str(home), "PATH": path, "no_proxy": direct, "NO_PROXY": direct},
        }
        port = self._start_superlink(environment)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n'
            f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        app = home / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(project, encoding="utf-8")
        cores = os.cpu_count() or 1
        command: list[str | Path] = [
            TOOLS / "flwr",
            *("run", app, _CONNECTION),
            "--federation-config",
            (
                f"num-supernodes={self.request.clients} client-resources-num-cpus=1 "
                f"init-args-num-cpus={max(2, cores)} init-args-log-to-driver=false"
            ),
        ]
        try:
            submitted = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_START_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FedloraError(
                f"Flower did not take the run within {_START_S:g} s; end other work on this "
                f"machine and try again, or see {self.log}"
            ) from None
        self._submitted = time.monotonic()
        if submitted.returncode != 0:
            tail = (submitted.stderr or submitted.stdout).strip().splitlines()[-1:]
            raise FedloraError(f"Flower did not take the run ({' '.join(tail)}); see {self.log}")

    def _start_superlink(self, environment: Mapping[str, str]) -> int:
        """Start a SuperLink and return its port: another one where somebody was faster."""
        home, deadline = Path(self._home.name), time.monotonic() + _START_S
        while True:
            port = free_port()
            home.mkdir(exist_ok=True)  # a guard that ended has removed it
            with self.log.open("ab") as log:
                self._guard = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "fedlora.guard", home),
                        *(TOOLS / "flower-superlink", "--insecure", "--simulation"),
                        *("--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)),
                    ],
                    env=environment,
                    stdin=subprocess.PIPE,  # nobody else has its other end: it closes with this
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            if self._answers(f"http://127.0.0.1:{port}/health", deadline):
                return port
            if self.running or time.monotonic() > deadline or not _is_taken(port):
                raise FedloraError(
                    f"flower-superlink did not start within {_START_S:g} s; see {self.log} for its "
                    "words"
                )
            _let_go(self._guard)

    def _answers(self, url: str, deadline: float) -> bool:
        """Wait until the SuperLink answers; False when it ended or the time is up."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while self.running and time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                with direct.open(url, timeout=10):
                    return True
            time.sleep(0.1)
        return False


def free_port() -> int:
    """Return a TCP port that is free on loopback now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _let_go(guard: subprocess.Popen[bytes]) -> None:
    """Tell a guard to end everything, and wait for it."""
    assert guard.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        guard.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        guard.wait(6 * END_S)


def _is_taken(port: int) -> bool:
    """Tell whether nothing else can listen on a port of loopback."""
    try:
        check_listens("127.0.0.1", port)
    except FedloraError:
        return True
    return False


def _simulates(process: psutil.Process) -> bool:
    """Tell whether a process is that of Flower's simulation and has not ended."""
    try:  # of a process that has ended and that nobody has asked after, there is no command line
        return "flwr-simulation" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _end_users_of(home: str) -> None:
    """Kill what still uses a FLWR_HOME; the guard leaves nothing unless it was killed itself."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == home:
                process.kill()


def _quoted(path: Path) -> str:
    """Return a path as a TOML string.

    Raises
    ------
    FedloraError
        When it has bytes that are no UTF-8, which no TOML file can hold.
    """
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FedloraError(
            f"the path {text!r} has bytes that are not UTF-8; choose another folder"
        ) from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
