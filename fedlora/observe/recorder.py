"""The recorder of a run that others may look at: the run folder, and whoever looks on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from fedlora.config import Scenario
from fedlora.observe.observer import Observer
from fedlora.observe.status import ClientStatus, RunState
from fedlora.report import RoundRecord, RunFolder


class ObservedFolder:
    """Writes down how a run goes, in its folder and for observers.

    Parameters
    ----------
    folder
        The run's folder.
    status_every_s
        Seconds between two writings of ``status.json``.
    observers
        Who looks on.

    Attributes
    ----------
    clients
        Returns the state of all clients; set once there is a cohort.
    """

    def __init__(self, folder: RunFolder, status_every_s: float, observers: list[Observer]) -> None:
        self.folder = folder
        self.state = RunState()
        self.clients: Callable[[], Mapping[str, ClientStatus]] = dict
        self._every_s = status_every_s
        self._observers = observers
        self._written = 0.0

    def append_event(self, event: str, /, **fields: object) -> None:
        """See ``Recorder``."""
        self.folder.append_event(event, **fields)
        told = {"event": event, "time": time.time(), **fields}
        self.state.apply(told)
        if time.monotonic() - self._written >= self._every_s:
            self.write_status()
        for observer in self._observers:
            observer.on_event(self.state, told)

    def append_round(self, record: RoundRecord) -> None:
        """See ``Recorder``."""
        self.folder.append_round(record)
        self.state.note_round(record)
        for observer in self._observers:
            observer.on_round(self.state, record)

    def write_status(self) -> None:
        """Replace ``status.json`` by the state of this moment."""
        self.state.clients = self.clients()
        self.folder.write_status({"time": time.time(), "clients": self.state.clients})
        self._written = time.monotonic()


@contextmanager
def observed(folder: RunFolder, scenario: Scenario) -> Iterator[ObservedFolder]:
    """Start everything that a scenario's ``observe`` section asks for, and stop it at the end.

    Raises
    ------
    FedloraError
        When an extra is not installed, or a port cannot be bound.
    """
    config, observers = scenario.observe, list[Observer]()
    with ExitStack() as stack:
        if config.tensorboard:
            from fedlora.observe.tensorboard import tensorboard

            observers.append(stack.enter_context(tensorboard(folder.path / "tensorboard")))
        if config.prometheus_port:
            from fedlora.observe.prometheus import prometheus

            observers.append(stack.enter_context(prometheus(scenario)))
        recorder = ObservedFolder(folder, config.status_every_s, observers)
        try:
            yield recorder
        finally:
            recorder.write_status()
