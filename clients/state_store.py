"""A client that keeps its own state on its own disk, so that a run can be taken up again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from clients.edge_client import EdgeClient
from fedlora.config import ForecastConfig, Scenario
from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import Frame, Keep, Restore, messages as m
from fedlora.storage.state import RoundStates

log = logging.getLogger("fedlora.edge")

_BOUND = "bound"
_FORGOTTEN_S = 30 * 24 * 3600.0  # after which a run that nobody ended counts as over


class ClientStateStore:
    """Answers ``keep`` and ``restore`` from a folder, and leaves the rest to the client.

    Parameters
    ----------
    client
        The client.
    folder
        Where this client's states of this run are; the last two are kept.
    bound
        What the states are of, see ``binding``; those of something else are refused.
    """

    def __init__(self, client: EdgeClient, folder: Path, bound: str = "") -> None:
        self._client = client
        self._bound = bound
        self._states = RoundStates(folder, private=True)
        self._handlers: dict[str, Callable[[int], int]] = {
            m.KEEP: self._keep,
            m.RESTORE: self._restore,
        }

    def handle(self, frame: Frame) -> Frame:
        """Answer one request; see ``EdgeClient.handle``."""
        handler = self._handlers.get(frame.kind)
        if handler is None:
            reply = self._client.handle(frame)
            if reply.kind == m.RESULT and not self._client.door.terms.simulated:
                with contextlib.suppress(OSError):  # the run has ended, and so have its states
                    shutil.rmtree(self._states.folder)
            return reply
        request = Restore if frame.kind == m.RESTORE else Keep
        round_ = request.from_frame(frame).round
        if round_ >= 10**6:
            raise ProtocolError(f"{frame.kind} needs a round from 0 to 999999, not {round_!r:.40}")
        door = self._client.door
        stored = {"round": door.public(handler(round_))}
        if frame.kind == m.RESTORE and not Restore.from_frame(frame).rows:
            self._client.forget_sent()
        return door.message(m.READY, self._client.name, frame.seq, stored)

    def _keep(self, round_: int) -> int:
        """Store the state of a round; return its number, or -1 when it cannot be stored."""
        try:
            self._states.write(round_, {_BOUND: self._bound, **self._client.state_dict()})
        except FedloraError as error:
            log.warning("client %s stores no state: %s", self._client.name, error)
            return -1
        return round_

    def _restore(self, round_: int) -> int:
        """Go back to the last state up to a round; return its number, 0 when all starts anew."""
        self._states.forget_after(round_)
        for found, state in self._states.readable():
            try:
                if state.get(_BOUND, "") != self._bound:
                    raise FedloraError(
                        "it is of another run, release, sharing, labels or privacy; start that anew"
                    )
                self._client.load_state_dict(state)
            except FedloraError as error:
                log.warning("client %s cannot use round %d: %s", self._client.name, found, error)
            else:
                return found
        self._client.restart()
        return 0


def binding(scenario: Scenario, run: str) -> str:
    """Return what a device's states are bound to, so that no other run or mechanism uses them.

    Parameters
    ----------
    scenario
        As the device runs it: what a head means and what it has learnt from.
    run
        Name of the run.
    """
    data, task = scenario.data, asdict(scenario.task)
    if scenario.task.forecast == ForecastConfig():  # as in states of before there were forecasts
        del task["forecast"]
    parts = {
        "run": run,
        "privacy": asdict(scenario.privacy),
        "head": asdict(scenario.head),
        "task": task,
        "embedding": _embedding(scenario),
        "cut": [scenario.model.dtype, scenario.model.client_front, scenario.model.client_back],
        "data": [data.train, data.test, *data.meaning],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _embedding(scenario: Scenario) -> bool | str:
    """Return whether the front trains, and where it is shared how."""
    share = scenario.front.share
    return scenario.train.embedding if share == "personal" else share


def forget_ended(states: Path, present: str) -> None:
    """Remove the states of runs that were abandoned a month ago.

    Parameters
    ----------
    states
        Folder of all runs' states.
    present
        Name of the run that is to be kept in any case.
    """
    with contextlib.suppress(OSError):
        for folder in states.iterdir():
            if folder.name == present or not folder.is_dir():
                continue
            # a round's state changes its client's folder, and not that of the run
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > _FORGOTTEN_S:
                shutil.rmtree(folder, ignore_errors=True)
