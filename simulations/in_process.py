"""A whole federation in one process: the same clients and frames, over in-process links."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from clients.build import SimulatedData, hello, load_parts
from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms
from fedlora.config import Scenario
from fedlora.link import Frame, LocalLink, edge_executor
from fedlora.report import RoundRecord
from fedlora.server.run import ServerRun
from fedlora.server.training import Recorder

Handler = Callable[[Frame], Frame]


class Record:
    """Keeps a run's rounds and events in memory."""

    def __init__(self) -> None:
        self.rounds: list[RoundRecord] = []
        self.events: list[dict[str, Any]] = []

    def append_event(self, event: str, /, **fields: object) -> None:
        """See ``Recorder``."""
        self.events.append({"event": event, **fields})

    def append_round(self, record: RoundRecord) -> None:
        """See ``Recorder``."""
        self.rounds.append(record)


class Federation:
    """The server and all clients of a scenario, connected in this process.

    Parameters
    ----------
    scenario
        What to run.
    recorder
        Where progress goes.
    workers
        Clients that compute side by side; 0 means one for each core.
    wrap
        Stands between a client and its link; may alter what it answers.
    terms
        What the owners of some clients allow, by the client's number; others allow everything.
    run
        Name of the run, by which ledgers go on with its plan; empty where it has none.

    Attributes
    ----------
    parts
        What the clients share.
    clients
        The clients, by number.
    server
        The server.
    """

    def __init__(
        self,
        scenario: Scenario,
        recorder: Recorder,
        workers: int = 0,
        wrap: Callable[[EdgeClient], Handler] = lambda client: client.handle,
        terms: Mapping[int, OwnerTerms] | None = None,
        run: str = "",
    ) -> None:
        data = SimulatedData(scenario, scenario.federation.clients)
        self.parts = load_parts(scenario, data.labels)
        self.clients = [
            data.build(self.parts, number, terms=(terms or {}).get(number), run=run)
            for number in range(scenario.federation.clients)
        ]
        self.server = ServerRun(scenario, recorder)
        executor = edge_executor(workers or os.cpu_count() or 1)
        for client in self.clients:
            opening = hello(self.parts, client)
            self.server.admit(opening)
            self.server.join(LocalLink(client.name, wrap(client), executor), opening)


def connect(
    scenario: Scenario,
    recorder: Recorder,
    workers: int = 0,
    wrap: Callable[[EdgeClient], Handler] = lambda client: client.handle,
) -> ServerRun:
    """Return the server of a ``Federation``."""
    return Federation(scenario, recorder, workers, wrap).server


def run(scenario: Scenario, recorder: Recorder, workers: int = 0) -> ServerRun:
    """Run a scenario from beginning to end in this process."""
    server = connect(scenario, recorder, workers)
    server.training.run()
    server.end()
    return server
