"""The recorder of a run that others may look at: the run folder, and whoever looks on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from fedlora.checks import finite
from fedlora.config import Scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.observe.observer import ClientStatus, Observer, RunState
from fedlora.report import RoundRecord, RunFolder, number_text

log = logging.getLogger("fedlora.server")
_FIELDS = ("step", "train_loss", "loss", "metric", "mean_rank", "seconds", "late_deliveries")
"""Of a round, what the log says; the rest is in ``metrics.jsonl``."""


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
        for record in folder.read_metrics():  # of a run that is gone on with
            self.state.note_round(record)
        self.clients: Callable[[], Mapping[str, ClientStatus]] = dict
        self._every_s = status_every_s
        self._observers = observers
        self._written = 0.0
        self._writing = threading.Lock()

    def append_event(self, event: str, /, **fields: object) -> None:
        """See ``Recorder``."""
        self.folder.append_event(event, **fields)
        told = {"event": event, "time": time.time(), **fields}
        self.state.apply(told)
        if time.monotonic() - self._written >= self._every_s:
            self.write_status()
        if event == "phase":
            log.info("%s", ", ".join(f"{key} {value}" for key, value in fields.items()))
        for observer in self._observers:
            observer.on_event(self.state, told)

    def append_round(self, record: RoundRecord) -> None:
        """See ``Recorder``."""
        self.folder.append_round(record)
        self.state.note_round(record)
        told = (f"{key} {_told(record.get(key))}" for key in _FIELDS if key in record)
        lost = ", ".join(map(str, record.get("lost") or ()))
        log.info(
            "round %s ended: %d clients, %s%s",
            record.get("round"),
            len(record.get("clients") or {}),
            ", ".join(told),
            f", lost {lost}" if lost else "",
        )
        for observer in self._observers:
            observer.on_round(self.state, record)

    def write_status(self) -> None:
        """Replace ``status.json`` by the state of this moment."""
        with self._writing:
            self.state.clients = self.clients()
            self.folder.write_status({"time": time.time(), "clients": self.state.clients})
            self._written = time.monotonic()

    def keep_status(self, over: threading.Event) -> None:
        """Write it also where nothing happens, as while a device is waited for; until told."""
        while not over.wait(self._every_s):
            # Meanwhile clients may come and go, or the disk be full: the next round says so.
            with suppress(RuntimeError, FedloraError):
                if time.monotonic() - self._written >= self._every_s:
                    self.write_status()


def _told(value: object) -> str:
    return str(value) if isinstance(value, int) else number_text(finite(value))


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
        if config.mlflow:
            from fedlora.observe.mlflow import mlflow

            text = scenario_to_toml(scenario)
            opened = mlflow(folder.path, config.mlflow_uri, text)
            observers.append(stack.enter_context(opened))
        if config.wandb:
            from fedlora.observe.wandb import wandb

            text = scenario_to_toml(scenario)
            observers.append(stack.enter_context(wandb(folder.path, config.wandb_mode, text)))
        if config.prometheus_port:
            from fedlora.observe.prometheus import prometheus

            observers.append(stack.enter_context(prometheus(scenario)))
        recorder = ObservedFolder(folder, config.status_every_s, observers)
        over = threading.Event()
        keeper = threading.Thread(
            target=recorder.keep_status, args=(over,), name="fedlora-status", daemon=True
        )
        keeper.start()
        try:
            yield recorder
        finally:
            over.set()
            keeper.join()
            recorder.write_status()
