"""A whole federation in one process: the same clients and frames, over in-process links."""

from __future__ import annotations

import os
from collections.abc import Callable

from clients.build import SimulatedData, hello, load_parts
from clients.edge_client import EdgeClient
from fedlora.config import Scenario
from fedlora.link.frame import Frame
from fedlora.link.local import LocalLink, edge_executor
from fedlora.report.records import RoundRecord
from fedlora.server.run import ServerRun
from fedlora.server.training import Recorder

Handler = Callable[[Frame], Frame]


class Record:
    """Keeps a run's rounds in memory."""

    def __init__(self) -> None:
        self.rounds: list[RoundRecord] = []

    def append_event(self, event: str, /, **fields: object) -> None:
        """See ``Recorder``; progress is not kept."""

    def append_round(self, record: RoundRecord) -> None:
        """See ``Recorder``."""
        self.rounds.append(record)


def connect(
    scenario: Scenario,
    recorder: Recorder,
    workers: int = 0,
    wrap: Callable[[EdgeClient], Handler] = lambda client: client.handle,
) -> ServerRun:
    """Build the server and all clients of a scenario, and connect them in this process.

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
    """
    data = SimulatedData(scenario, scenario.federation.clients)
    parts = load_parts(scenario, data.labels)
    server = ServerRun(scenario, recorder)
    executor = edge_executor(workers or os.cpu_count() or 1)
    for number in range(scenario.federation.clients):
        client = data.build(parts, number)
        opening = hello(parts, client)
        server.admit(opening)
        server.join(LocalLink(client.name, wrap(client), executor), opening)
    return server


def run(scenario: Scenario, recorder: Recorder, workers: int = 0) -> ServerRun:
    """Run a scenario from beginning to end in this process."""
    server = connect(scenario, recorder, workers)
    server.training.run()
    server.end()
    return server
