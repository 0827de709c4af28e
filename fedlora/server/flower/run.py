"""A run over Flower: find the nodes, open their sessions, train, collect, end."""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedlora.check import check_plugins, check_server
from fedlora.config import ChannelConfig, DataConfig, Scenario, scenario_to_toml, with_overrides
from fedlora.errors import NoClientsLeft
from fedlora.import_path import plugin_folders
from fedlora.launch.working_folder import go_where_started, is_told
from fedlora.observe.outcome import logging_to, outcome_in
from fedlora.observe.recorder import observed
from fedlora.report import RUN, RunFolder
from fedlora.scenarios import find_scenario
from fedlora.server.checkpoint import Checkpoints, open_run
from fedlora.server.flower.console import narrated
from fedlora.server.flower.edge_hosts import EdgeHosts
from fedlora.server.flower.nodes import RECORD, Node, find_nodes
from fedlora.server.flower.sessions import Places, Sessions
from fedlora.server.results import export, write_results
from fedlora.server.run import ServerRun
from fedlora.storage import dated_folder

log = logging.getLogger("fedlora.server")

COLLECT = "query.collect"
_POLL_S = 0.1
_RUN = dataclasses.replace(RUN, overwrite="--run-config overwrite=true")


def run_over_flower(grid: Grid, config: Mapping[str, Any], run_id: int) -> None:
    """Run the scenario of a Flower run configuration.

    Parameters
    ----------
    grid
        Flower's way to the nodes.
    config
        ``scenario`` (name, TOML text or path; a relative one is looked up in the app's folder
        first), ``set`` (overrides, separated by blanks), ``out``
        (run folder), ``overwrite`` (whether an earlier run there is replaced), ``prepared``
        (whether the caller has made the folder), and ``resume`` (folder of a run to go on with, in
        place of all these). Where the folder holds a checkpoint, the run
        goes on from it.
    run_id
        Flower's number of the run.
    """
    scenario = find_scenario(_in_bundle(str(config.get("scenario") or "quickstart")))
    scenario = with_overrides(scenario, str(config.get("set") or "").split())
    out = Path(str(config.get("out") or "") or dated_folder(Path("runs") / scenario.name)).resolve()
    prepared = bool(config.get("prepared", False))
    if config.get("resume"):
        scenario, folder = open_run(Path(str(config["resume"])))
    else:
        overwrite = bool(config.get("overwrite", False))
        folder = (
            RunFolder(out) if prepared else RunFolder.create(out, overwrite=overwrite, kind=_RUN)
        )
    # Whoever made the folder follows the run and reports on it.
    with nullcontext() if prepared else narrated(folder):
        with logging_to(folder, json_lines=scenario.observe.json_log), outcome_in(folder):
            _run(grid, scenario, folder, run_id)
        if not prepared:
            from fedlora.report.page import write_report  # half a second of matplotlib

            write_report(folder)


def _run(grid: Grid, scenario: Scenario, folder: RunFolder, run_id: int) -> None:
    if not is_told():
        check_server(scenario)  # before anybody is waited for; `fedlora run` has done so
    folder.append_event("waiting", text="the server is there and waits for Flower's nodes")
    nodes = find_nodes(grid, scenario, folder)
    go_where_started()  # Ray is up, if this is a simulation
    check_plugins(scenario)
    log.info(
        "run of scenario %s with %s, seed %d, %d rounds of %d steps; clients %s",
        *(scenario.name, scenario.model.path, scenario.seed),
        *(scenario.train.rounds, scenario.train.steps),
        ", ".join(f"{n.client} (node {n.id})" for n in nodes[:20]) + (", …" * (len(nodes) > 20)),
    )
    deployed = not all(node.simulated for node in nodes)
    folder.write_scenario(resolved(scenario, deployed=deployed))
    hosts = EdgeHosts(scenario, nodes, run_id, folder)
    with observed(folder, scenario) as recorder, hosts:
        folder.append_event("waiting", text="the server loads its blocks, clients their ends")
        server = ServerRun(scenario, recorder)
        server.air.radio = not deployed or scenario.channel != ChannelConfig()
        recorder.clients = server.clients
        results = _train(grid, server, nodes, hosts, folder)
    write_results(folder, server, results)


def resolved(scenario: Scenario, *, deployed: bool) -> str:
    """Return a scenario as TOML, in a deployment without the defaults of data and radio.

    There devices read their own data and no channel is modelled; a resume reads the same of it.
    """
    text = scenario_to_toml(scenario)
    if not deployed:
        return text
    left_out = {"channel"} if scenario.channel == ChannelConfig() else set()
    left_out |= {"data"} if scenario.data == DataConfig() else set()
    blocks = re.split(r"(?m)^(?=\[)", text)
    named = [re.match(r"\[([a-z_]+)", block) for block in blocks]
    return "".join(b for b, n in zip(blocks, named, strict=True) if not n or n[1] not in left_out)


def _in_bundle(scenario: str) -> str:
    """Return the path of a scenario file in the app's bundle, which Flower puts on the path."""
    folders = (*plugin_folders(), *sys.path) if scenario.endswith(".toml") else ()
    for folder in map(Path, folders):
        if (folder / "pyproject.toml").is_file() and (folder / scenario).is_file():
            return str(folder / scenario)
    return scenario


def _train(
    grid: Grid,
    server: ServerRun,
    nodes: Sequence[Node],
    hosts: EdgeHosts,
    folder: RunFolder,
) -> dict[str, dict[str, Any]]:
    """Train from the start or the last checkpoint; return what clients' hosts tell."""
    training, checkpoints = server.training, Checkpoints(folder.checkpoint)
    checkpoints.hold()
    private = server.scenario.privacy.enabled
    places = Places(
        run=checkpoints.name(),
        hosts=hosts.of,
        states=checkpoints.clients.resolve(),
        ledgers=(folder.path / "ledgers").resolve() if private else None,
    )
    with (
        Sessions(grid, server, nodes, places) as sessions,
        hosts.watched(sessions.break_off),
    ):

        def keep() -> None:
            export(server).save(folder.adapter)
            checkpoints.save(training)

        def after_round() -> None:
            keep()
            if training.done < server.scenario.train.rounds:
                here = sessions.readmit()
                back = [client for client in here if client not in sessions.newcomers]
                checkpoints.restore_clients(training, back)
                checkpoints.begin_late(training, sessions.newcomers.intersection(here))
                sessions.newcomers.difference_update(here)

        def latest() -> dict[str, Any] | None:
            state = checkpoints.latest()
            if state is not None:
                folder.forget_rounds_after(int(state["round"]))
            return state

        sessions.open()
        training.before_rounds = keep
        training.after_round = after_round
        state = latest()
        while True:
            try:
                training.run(partial(checkpoints.restore, training, state) if state else None)
                break
            except NoClientsLeft:
                if not server.cohort.deployed:
                    raise
                state = latest()
                log.warning(
                    "the round is begun again when devices are back (%s)", server.cohort.reasons()
                )
                sessions.readmit()
                sessions.newcomers.clear()  # all are told where the run stands
        server.end()
        limit_s = server.scenario.federation.connect_timeout_s
    return _collect(grid, nodes, hosts.of, limit_s)


def _collect(
    grid: Grid, nodes: Sequence[Node], hosts: Mapping[int, str], limit_s: float
) -> dict[str, dict[str, Any]]:
    """In a simulation, fetch what each client's host knows of it, within so many seconds."""
    simulated = [node for node in nodes if node.client in hosts]
    messages = [
        Message(
            RecordDict({RECORD: ConfigRecord({"client": n.client, "host": hosts[n.client]})}),
            dst_node_id=n.id,
            message_type=COLLECT,
        )
        for n in simulated
    ]
    # By message, as a node may carry several clients.
    asked = dict(zip(grid.push_messages(messages), simulated, strict=True)) if messages else {}
    found: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + limit_s
    while asked and time.monotonic() < deadline:
        for reply in grid.pull_messages(list(asked)):
            node = asked.pop(reply.metadata.reply_to_message_id)
            if not reply.has_error():
                found[str(node.client)] = dict(reply.content[RECORD])
        time.sleep(_POLL_S)
    return found
