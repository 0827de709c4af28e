"""Starting a run through Flower's simulation: a SuperLink of its own, on ports of its own.

Two runs at once do not meet: each has its own FLWR_HOME, SuperLink, port and Ray. All processes are
the children of one guard (``fedlora.launch.guard``), and whatever happens they are ended together.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from fedlora import __version__
from fedlora.errors import FedloraError
from fedlora.launch.flower_commands import TOOLS, FlowerCommands, start_s
from fedlora.launch.guard import END_S
from fedlora.launch.temporary import run_folder
from fedlora.link.stream.address import check_listens
from fedlora.machine import stretch

_GONE_S = 3.0
# Ray gives its own processes 30 s to start (ray/_private/node.py), which a busy machine exceeds.
_LATE_RAY, _RAY_STARTS = "timed out during startup", 4

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

    Attributes
    ----------
    simulator
        Number of the process that simulates the run, once it was seen.

    Raises
    ------
    FedloraError
        When there is no folder for its temporary files, or Flower does not start.
    """

    def __init__(self, request: SimulationRequest) -> None:
        self.request = request
        self._home = run_folder()
        self._flower = FlowerCommands(Path(self._home.name))
        self._guard: subprocess.Popen[bytes] | None = None
        self._submitted = time.monotonic()
        self._seen: float | None = None
        self._run_id, self._starts = "", 0
        self.simulator: int | None = None
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
        now = time.monotonic()
        for process in filter(_simulates, family):
            self._seen, self.simulator = now, process.pid
        # One look that misses it is no proof: the list of processes is not read at one moment.
        if self._seen is None:
            return now < self._submitted + start_s()
        return now < self._seen + _GONE_S * stretch()

    def begins_again(self) -> bool:
        """Give a run to Flower once more where its Ray was late, at which nothing was begun yet."""
        if not self.running or self._starts >= _RAY_STARTS * stretch():
            return False
        if _LATE_RAY not in self._flower.log(self._run_id):
            return False
        self._submit()
        return True

    def last_words(self) -> str:
        """Return why the run ended as Flower knows it, if it does; its log goes to ``log``.

        What simulates a run has no output of its own: it tells its log to the SuperLink.
        """
        if not self._run_id or not self.running:
            return ""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(self._flower.log(self._run_id))
        return self._flower.details(self._run_id)

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
        self._flower.connect(self._start_superlink())
        app = home / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(project, encoding="utf-8")
        self._submit()

    def _submit(self) -> None:
        try:
            self._run_id = self._flower.submit(self._flower.home / "app", self.request.clients)
        except FedloraError as error:
            raise FedloraError(f"{error}; see {self.log}") from None
        self._submitted, self._seen = time.monotonic(), None
        self._starts += 1

    def _start_superlink(self) -> int:
        """Start a SuperLink and return its port: another one where somebody was faster."""
        home, deadline = Path(self._home.name), time.monotonic() + (limit_s := start_s())
        while True:
            port = free_port()
            home.mkdir(exist_ok=True)  # a guard that ended has removed it
            with self.log.open("ab") as log:
                self._guard = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "fedlora.launch.guard", home),
                        *(TOOLS / "flower-superlink", "--insecure", "--simulation"),
                        *("--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)),
                    ],
                    env=self._flower.environment,
                    cwd=home,
                    stdin=subprocess.PIPE,  # nobody else has its other end: it closes with this
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            if self._answers(f"http://127.0.0.1:{port}/health", deadline):
                return port
            if self.running or time.monotonic() > deadline or not _is_taken(port):
                raise FedloraError(
                    f"flower-superlink did not start within {limit_s:.0f} s; see {self.log} for "
                    "its words"
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
