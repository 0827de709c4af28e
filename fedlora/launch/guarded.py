"""Processes of Flower under a guard each, which end with the one that started them."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from fedlora.errors import FedloraError
from fedlora.launch.flower_commands import TOOLS, start_s
from fedlora.launch.guard import ALL_WRITTEN, END_S
from fedlora.machine import stretch

_GONE_S = 3.0


class StartedTogether(ABC):
    """Processes that a ``with`` statement starts, and ends however its block ends."""

    def __enter__(self) -> Self:
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

    @abstractmethod
    def stop(self) -> None:
        """End all of them."""

    @abstractmethod
    def _start(self) -> None:
        """Start them; what has been started when it fails is ended."""


@dataclass(frozen=True)
class Place:
    """Where a process of Flower lives.

    Attributes
    ----------
    home
        Its FLWR_HOME, which its guard removes at the end.
    log
        File to which its words go.
    environment
        Its environment.
    """

    home: Path
    log: Path
    environment: Mapping[str, str]


def start_guarded(
    tool: str, arguments: Sequence[str | Path], place: Place
) -> subprocess.Popen[bytes]:
    """Start one of Flower's tools; return its guard, for ``let_go``."""
    place.home.mkdir(parents=True, exist_ok=True)  # a guard that ended has removed it
    with place.log.open("ab") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "fedlora.launch.guard", place.home),
                *(TOOLS / tool, *arguments),
            ],
            env=place.environment,
            cwd=place.home,
            stdin=subprocess.PIPE,  # nobody else has its other end: it closes with this process
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def start_superlink(
    arguments: Sequence[str | Path], place: Place, context: ssl.SSLContext | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a SuperLink on a port of loopback that is free, and wait until it answers.

    Parameters
    ----------
    arguments
        What it is started with beside host and port.
    place
        Where it lives.
    context
        How it is spoken to; None speaks without TLS.

    Returns
    -------
    guard, port
        Its guard, and the port: another one where somebody was faster.

    Raises
    ------
    FedloraError
        When it does not start in time.
    """
    deadline = time.monotonic() + (limit_s := start_s())
    scheme = "http" if context is None else "https"
    while True:
        port = free_port()
        where = ("--host", "127.0.0.1", "--port", str(port))
        guard = start_guarded("flower-superlink", [*arguments, *where], place)
        try:
            if _answers(guard, f"{scheme}://127.0.0.1:{port}/health", deadline, context):
                return guard, port
            if guard.poll() is None or time.monotonic() > deadline or not _is_taken(port):
                raise FedloraError(
                    f"flower-superlink did not start within {limit_s:.0f} s; see {place.log} for "
                    "its words"
                )
        except BaseException:
            let_go(guard)
            raise
        let_go(guard)


def dismiss(*guards: subprocess.Popen[bytes], all_written: bool = False) -> None:
    """Tell guards to end everything; where all is written, without asking anybody first."""
    for guard in guards:
        assert guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            if all_written:
                guard.stdin.write(ALL_WRITTEN)
            guard.stdin.close()


def let_go(*guards: subprocess.Popen[bytes]) -> None:
    """Tell guards to end everything, and wait for them."""
    dismiss(*guards)
    for guard in guards:
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(6 * END_S)


def family(guard: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return all processes below a guard; none where it has ended."""
    if guard.poll() is not None:
        return []
    try:
        return list(psutil.Process(guard.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


class Watch:
    """Whether a SuperLink has a process for its run.

    Parameters
    ----------
    name
        What stands in that process's command line.

    Attributes
    ----------
    process
        Its number, once it was seen.
    """

    def __init__(self, name: str) -> None:
        self.process: int | None = None
        self._name = name
        self._seen: float | None = None
        self._began = time.monotonic()

    def begin(self) -> None:
        """Wait for it anew: a run was given to the SuperLink."""
        self._began, self._seen = time.monotonic(), None

    def works(self, guard: subprocess.Popen[bytes]) -> bool:
        """Tell whether there is one, or may still come one."""
        now = time.monotonic()
        for process in family(guard):
            if runs(process, self._name):
                self._seen, self.process = now, process.pid
        if guard.poll() is not None:
            return False
        # One look that misses it is no proof: the list of processes is not read at one moment.
        if self._seen is None:
            return now < self._began + start_s()
        return now < self._seen + _GONE_S * stretch()


def runs(process: psutil.Process, name: str) -> bool:
    """Tell whether a process has a name in its command line and has not ended."""
    try:  # of a process that has ended and that nobody has asked after, there is no command line
        return name in " ".join(process.cmdline())
    except psutil.Error:
        return False


def peak_resident(process: psutil.Process) -> int:
    """Return the most resident memory that a process had, in bytes; what it has now elsewhere."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) << 10
    except (OSError, ValueError):  # no Linux, or it has ended
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def end_users_of(home: Path | str) -> None:
    """Kill what still uses a FLWR_HOME; the guard leaves nothing unless it was killed itself."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == str(home):
                process.kill()


def free_port() -> int:
    """Return a TCP port that is free on loopback now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(
    guard: subprocess.Popen[bytes], url: str, deadline: float, context: ssl.SSLContext | None
) -> bool:
    """Wait until a SuperLink answers; False when it ended or the time is up."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    direct = urllib.request.build_opener(*handlers)
    while guard.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            with direct.open(url, timeout=10):
                return True
        time.sleep(0.1)
    return False


def _is_taken(port: int) -> bool:
    """Tell whether nothing else can listen on a port of loopback."""
    from fedlora.link.stream import check_listens  # its room imports torch: one second

    try:
        check_listens("127.0.0.1", port)
    except FedloraError:
        return True
    return False
