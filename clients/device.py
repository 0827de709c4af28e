"""A client on its own device: its data and model are where its node configuration says."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from clients.build import SimulatedData, hello, load_parts
from clients.edge_client import EdgeClient
from clients.keeper import Keeper
from clients.number import own_number
from clients.reports import device_report
from clients.terms import OwnerTerms
from fedlora.config import DataConfig, Scenario, scenario_from_toml
from fedlora.errors import FedloraError
from fedlora.link.stream_client import StreamClient
from fedlora.tasks.base import task_class

_RUN = re.compile(r"[0-9a-f]{16}")


def take_part(session: Mapping[str, Any], node_config: Mapping[str, Any]) -> str:
    """Answer the server until it ends the session; return what went wrong, or nothing.

    Parameters
    ----------
    session
        The session message: scenario, address, certificate, token, number of clients.
    node_config
        ``partition-id``; ``data`` and ``test`` name this device's own files, ``text``, ``label``
        and ``columns`` their columns, ``record-separator`` and ``pattern`` say what a record of a
        text file is, ``model`` names its model folder, ``state`` where it keeps head and optimiser
        between rounds. Without ``data`` the device takes its part of the scenario's data, of a file
        only with ``scenario-data``. ``idle-limit-s`` is how long the server may ask
        nothing before the device leaves. The owner's terms are in ``privacy-epsilon`` and the
        other keys of ``clients.private``.
    """
    torch.set_num_threads(1)
    try:
        idle_s = idle_limit_s(node_config)
        scenario = local_scenario(scenario_from_toml(session["scenario"]), node_config)
        own_data = "data" in node_config
        clients = 1 if own_data else int(session["clients"])
        data = SimulatedData(scenario, clients)
        number = own_number(session, node_config)
        parts = load_parts(scenario, data.labels)
        terms = OwnerTerms.from_node_config(node_config, number)
        states = state_folder(node_config, str(session["run"]))
        part = 0 if own_data else number
        edge: EdgeClient = data.build(parts, number, part, terms, states.name)
        with closing(edge.release):
            stream = StreamClient(
                session["address"],
                session["certificate"] or None,
                max_frame_bytes=scenario.link.max_frame_mib << 20,
                give_up_s=scenario.link.give_up_s,
            )
            edge.report = device_report(scenario, number, stream, edge.statistics)
            keeper = Keeper(edge, states / edge.name)
            opening = hello(parts, edge, session["token"])
            stream.serve({edge.name: keeper.handle}, [opening], idle_s=idle_s)
    except FedloraError as error:
        return str(error)
    return ""


def idle_limit_s(node_config: Mapping[str, Any]) -> float:
    """Return how long a server may ask this device nothing, in seconds; by default 12 hours.

    A client may sit out many rounds, so it is long; without it a server that hangs would hold a
    device for good.

    Raises
    ------
    FedloraError
        When it is no number above 0.
    """
    value = node_config.get("idle-limit-s", 12 * 3600.0)
    try:
        limit_s = float(value)
    except (TypeError, ValueError):
        limit_s = math.nan
    if not 0 < limit_s < math.inf:
        raise FedloraError(f"node config idle-limit-s is {value!r}; set seconds above 0")
    return limit_s


def state_folder(node_config: Mapping[str, Any], run: str) -> Path:
    """Return where this device keeps its states of a run, by the name that the server gave it.

    Raises
    ------
    FedloraError
        When the name is not one that a server gives.
    """
    if not _RUN.fullmatch(run):
        raise FedloraError(f"the run is called {run[:40]!r}; both sides need one fedlora release")
    default = Path.home() / ".fedlora" / "states"
    return Path(str(node_config.get("state", default))).expanduser() / run


def local_scenario(scenario: Scenario, node_config: Mapping[str, Any]) -> Scenario:
    """Return the scenario with this device's own paths, which the server never learns.

    With data of its own the device also says itself what separates the records of a text file, and
    which columns are text and label: activations give the text away, so a server that names the
    label's column as the text would read every label, whatever noise the gradients carry.

    Raises
    ------
    FedloraError
        When the classes would have to be guessed from one device's data, the owner has set a limit
        but not said which columns are what, or the scenario names a file of this device.
    """
    if "model" in node_config:
        model = dataclasses.replace(scenario.model, path=str(node_config["model"]))
        scenario = dataclasses.replace(scenario, model=model)
    if "data" not in node_config:
        _check_trial(scenario, node_config)
        return scenario
    pooled = task_class(scenario.task.kind).pooled
    if pooled and not scenario.task.labels:
        raise FedloraError(
            "task.labels is empty, and one device's data may lack a class; name all classes "
            "in the scenario"
        )
    plain, limited = DataConfig(), "privacy-epsilon" in node_config
    for key in ("text", "label") if pooled else ("text",):
        if limited and key not in node_config:
            raise FedloraError(
                f"privacy-epsilon is set, but not which column of data is the {key}; set {key} in "
                "the node configuration, as a server that chooses it could have labels sent as text"
            )
    theirs = plain if limited else scenario.data
    columns = str(node_config.get("columns", ",".join(theirs.columns)))
    data = dataclasses.replace(
        scenario.data,
        train=str(node_config["data"]),
        test=str(node_config.get("test", "")),
        columns=tuple(name.strip() for name in columns.split(",")) if columns else (),
        text=str(node_config.get("text", theirs.text)),
        label=str(node_config.get("label", theirs.label)),
        # where a text file is cut makes its records, by which the owner's ledger knows them
        record_separator=str(node_config.get("record-separator", plain.record_separator)),
        pattern=str(node_config.get("pattern", plain.pattern)),
    )
    if pooled and data.text == data.label:
        raise FedloraError(
            f"text and label are both the column {data.text!r}, so the label would be sent as "
            "text; name two"
        )
    partition = dataclasses.replace(scenario.partition, kind="iid")
    return dataclasses.replace(scenario, data=data, partition=partition)


def _check_trial(scenario: Scenario, node_config: Mapping[str, Any]) -> None:
    """Refuse to read files that a scenario, and so a server, chooses on this device."""
    allowed = str(node_config.get("scenario-data", "false")).lower()
    if allowed not in ("true", "false"):
        raise FedloraError(f"node config scenario-data is {allowed!r}; set true or false")
    for path in (scenario.data.train, scenario.data.test):
        if allowed == "false" and path and not path.startswith(("package:", "hub:")):
            raise FedloraError(
                f"the scenario names {path!r}, and no server may choose what is read on this "
                "device; set data in the node configuration, or scenario-data=true for a trial"
            )
