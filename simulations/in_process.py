"""A whole federation in one process: the same clients and frames, over in-process links."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clients.build import hello, load_parts
from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms
from clients.simulated_data import SimulatedData
from fedlora.api import Overrides, assignments
from fedlora.check import check_run
from fedlora.config import Scenario, scenario_to_toml, with_overrides
from fedlora.link import Frame, LocalLink, edge_executor
from fedlora.observe.outcome import logging_to, outcome_in
from fedlora.observe.recorder import observed
from fedlora.report import RoundRecord, RunFolder, RunResult
from fedlora.report.page import write_report
from fedlora.scenarios import find_scenario
from fedlora.server.results import write_results
from fedlora.server.run import ServerRun
from fedlora.server.training import Recorder
from fedlora.storage import dated_folder

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
    data
        The records, spread over the clients.
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
        self.data = data = SimulatedData(scenario, scenario.federation.clients)
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


def federate(
    scenario: str | Path | Scenario = "quickstart",
    *,
    out: str | Path | None = None,
    overrides: Overrides = (),
    overwrite: bool = False,
    workers: int = 0,
) -> RunResult:
    """Run a scenario in this process, without Flower and Ray, and return its result.

    Adapter, losses and traffic are those of ``fedlora.run``, bit for bit; it starts faster, and a
    debugger stops in clients and server alike.

    Parameters
    ----------
    scenario, out, overrides, overwrite
        As for ``fedlora.run``.
    workers
        Clients that compute side by side; 0 means one for each core.

    Raises
    ------
    FedloraError
        When the folder is taken, the scenario cannot be used, or the run failed.
    """
    given = find_scenario(str(scenario)) if not isinstance(scenario, Scenario) else scenario
    config = with_overrides(given, assignments(overrides))
    check_run(config)
    place = dated_folder(Path("runs") / config.name) if out is None else Path(out).expanduser()
    folder = RunFolder.create(place.resolve(), overwrite=overwrite)
    try:
        folder.write_scenario(scenario_to_toml(config))
        with logging_to(folder, json_lines=config.observe.json_log), outcome_in(folder):
            with observed(folder, config) as recorder:
                federation = Federation(config, recorder, workers)
                server = federation.server
                recorder.clients = server.clients
                server.training.run()
                server.end()
            told = {
                client.name: federation.data.holdings(int(client.name), federation.parts.scenario)
                for client in federation.clients
            }
            write_results(folder, server, told)
        write_report(folder)
    finally:
        folder.release()
    return RunResult(folder.path)


def run(scenario: Scenario, recorder: Recorder, workers: int = 0) -> ServerRun:
    """Run a scenario from beginning to end in this process."""
    server = connect(scenario, recorder, workers)
    server.training.run()
    server.end()
    return server
