"""Starting a run through Flower's simulation: a SuperLink of its own, on ports of its own.

Two runs at once do not meet: each has its own FLWR_HOME, SuperLink, port and Ray. All processes are
the children of one guard (``fedlora.launch.guard``), and whatever happens they are ended together.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import FedloraError
from fedlora.launch.app_folder import write_app
from fedlora.launch.flower_commands import FlowerCommands
from fedlora.launch.guarded import (
    Place,
    StartedTogether,
    Watch,
    dismiss,
    end_users_of,
    let_go,
    start_superlink,
)
from fedlora.launch.temporary import run_folder
from fedlora.machine import stretch

SIMULATES = "flwr-simulation"
"""Stands in the command line of the process that simulates a run."""

# Ray gives its own processes 30 s to start (ray/_private/node.py), which a busy machine exceeds.
_LATE_RAY, _RAY_STARTS = "timed out during startup", 4


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


class FlowerSimulation(StartedTogether):
    """A SuperLink in simulation mode with one run, as a context manager.

    Parameters
    ----------
    request
        What to run.

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
        self._watch = Watch(SIMULATES)
        self._run_id, self._starts = "", 0
        self.log = request.out / "flower.txt"

    @property
    def running(self) -> bool:
        """Whether the SuperLink is still there."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def simulator(self) -> int | None:
        """Number of the process that simulates the run, once it was seen."""
        return self._watch.process

    @property
    def working(self) -> bool:
        """Whether the SuperLink is there and still has a process for the run."""
        return self._guard is not None and self._watch.works(self._guard)

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

    def dismiss(self) -> None:
        """Tell everything of a finished run, which has written all, to end; wait for nothing."""
        if self._guard is not None:
            dismiss(self._guard, all_written=True)

    def stop(self) -> None:
        """End the SuperLink, the run and its Ray."""
        if self._guard is not None:
            let_go(self._guard)
            end_users_of(self._home.name)
            self._guard = None
        self._home.cleanup()

    def _start(self) -> None:
        home = self._flower.home
        arguments = ("--insecure", "--simulation", "--isolation", "subprocess")
        place = Place(home, self.log, self._flower.environment)
        self._guard, port = start_superlink(arguments, place)
        self._flower.connect(port)
        write_app(home / "app", self.request.scenario, self.request.out)
        self._submit()

    def _submit(self) -> None:
        try:
            self._run_id = self._flower.submit(self._flower.home / "app", self.request.clients)
        except FedloraError as error:
            raise FedloraError(f"{error}; see {self.log}") from None
        self._watch.begin()
        self._starts += 1
