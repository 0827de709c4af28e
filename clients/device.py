"""A client on its own device: its data and model are where its node configuration says."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from clients.build import EdgeParts, hello, load_parts
from clients.edge_client import EdgeClient
from clients.own_records import OwnRecords
from clients.owner import (
    Diary,
    Door,
    OwnerTerms,
    check_arrived,
    local_scenario,
    own_number,
    warn_of_other_ledgers,
)
from clients.reports import device_report
from clients.simulated_data import SimulatedData
from clients.state_store import ClientStateStore, binding, forget_ended
from fedlora.config import NodeKeys, Scenario, scenario_from_toml, states_folder
from fedlora.errors import ClientLost, FedloraError
from fedlora.link.stream.client.client import StreamClient
from fedlora.reasons import about
from fedlora.site.device_log import device_log

log = logging.getLogger("fedlora.edge")

_RUN = re.compile(r"[0-9a-f]{16}")
_MOST_CLIENTS = 1 << 20


def take_part(session: Mapping[str, Any], node_config: Mapping[str, Any]) -> dict[str, Any]:
    """Answer the server until it ends the session; return why not, or nothing.

    Parameters
    ----------
    session
        The session message: scenario, address, certificate, token, number of clients.
    node_config
        The owner's keys, see ``fedlora.config.node.NodeKeys``.

    Returns
    -------
    dict
        What may be told of a failure: a kind of ``fedlora.reasons``. The whole sentence goes
        to the device's log, what happened to its audit file.
    """
    torch.set_num_threads(1)
    began, folder = time.monotonic(), states_folder(node_config)
    with device_log(folder, f"client {session.get('client')}"):
        diary = Diary(folder, session)
        try:
            with about("keys"):
                diary.asked()
                keys = NodeKeys.read(node_config)
                check_arrived(node_config)
            terms = OwnerTerms.of(keys)
            log.info("this device's keys: %s", ", ".join(sorted(node_config)))
            try:
                _take_part(Invitation.read(session, keys), keys, terms, diary)
            except ClientLost as error:
                _wait_as_long(error, session, keys, began)
                raise
        except Exception as error:
            diary.failed(error)
            return Door(OwnerTerms(deployed=True)).told(error)
    return {}


@dataclass(frozen=True)
class Invitation:
    """What a server says when it invites a device; nothing in it is taken further than this.

    Attributes
    ----------
    scenario
        The run, within the owner's terms.
    address, certificate, token
        Of the tensor stream.
    number, clients
        Client number of this device, which has to be its own, and how many clients there are.
    run
        Name of the run.
    """

    scenario: Scenario
    address: str
    certificate: bytes
    token: str
    number: int
    clients: int
    run: str

    @classmethod
    def read(cls, session: Mapping[str, Any], keys: NodeKeys) -> Self:
        """Read a session message.

        Raises
        ------
        FedloraError
            When a part is missing or not what this release sends, or the owner does not allow it.
        """
        with about("invitation"):
            wanted = {"address": str, "certificate": bytes, "token": str, "client": int}
            wanted |= {"clients": int, "run": str, "scenario": str}
            for name, kind in wanted.items():
                if type(session.get(name)) is not kind:
                    raise FedloraError(
                        f"the invitation's {name} is {session.get(name)!r:.40}; both sides need "
                        "one fedlora release"
                    )
            if not 0 < session["clients"] <= _MOST_CLIENTS:
                raise FedloraError(f"the invitation says {session['clients']} clients")
            run = str(session["run"])
            if not _RUN.fullmatch(run):
                raise FedloraError(
                    f"the run is called {run[:40]!r}; both sides need one fedlora release"
                )
        with about("server"):
            _check_address(session["address"], keys)
        with about("number"):
            number = own_number(session, keys)
        with about("scenario"):
            scenario = scenario_from_toml(session["scenario"])
        return cls(
            local_scenario(scenario, keys),
            session["address"],
            session["certificate"],
            session["token"],
            number,
            session["clients"],
            run,
        )


def _take_part(invitation: Invitation, keys: NodeKeys, terms: OwnerTerms, diary: Diary) -> None:
    scenario, number = invitation.scenario, invitation.number
    data, parts = _load(invitation, keys)
    states = state_folder(keys, invitation.run)
    forget_ended(states.parent, invitation.run)
    warn_of_other_ledgers(keys, data.records)
    with about("terms"):
        part = 0 if keys.data else number
        edge: EdgeClient = data.build(parts, number, part, terms, invitation.run)
    with closing(edge.release):
        with about("keys"):
            diary.accepted(edge.door, _data(keys), data.used, keys.limit)
        with about("server"):
            stream = StreamClient(
                invitation.address,
                invitation.certificate or None,
                max_frame_bytes=scenario.link.max_frame_mib << 20,
                give_up_s=scenario.link.give_up_s,
                words=diary.told,
            )
        edge.report = device_report(scenario, number, stream)
        store = ClientStateStore(edge, states / edge.name, binding(scenario, invitation.run))
        opening = hello(parts, edge, invitation.token)
        diary.leaves(opening)
        handlers = {edge.name: diary.watched(store.handle)}
        stream.serve(handlers, [opening], idle_s=keys.idle_limit_s)
        diary.ended()


def _load(invitation: Invitation, keys: NodeKeys) -> tuple[SimulatedData, EdgeParts]:
    """Read the records, and the client's ends of the model."""
    scenario = invitation.scenario
    with about("data"):
        data = (
            OwnRecords(scenario, keys) if keys.data else SimulatedData(scenario, invitation.clients)
        )
    with about("model"):
        return data, load_parts(scenario, data.labels)


def _data(keys: NodeKeys) -> str:
    """Return where the owner finds the records that a run used."""
    return str(Path(keys.data).absolute()) if keys.data else "the scenario's data"


def state_folder(keys: NodeKeys, run: str) -> Path:
    """Return where this device keeps its states of a run, by the name that the server gave it."""
    return keys.states() / run


def _check_address(address: str, keys: NodeKeys) -> None:
    """Refuse to dial what the owner has not named, where the owner has named anything."""
    host, _, port = address.rpartition(":")
    named = {host, host.strip("[]"), address, f"{host.strip('[]')}:{port}"}
    if keys.server and not named & set(keys.server):
        raise FedloraError(
            f"the invitation says to dial {address[:80]!r}, but server in the node configuration "
            f"is {', '.join(keys.server)}; add it there if it is right"
        )


def _wait_as_long(
    error: ClientLost, session: Mapping[str, Any], keys: NodeKeys, began: float
) -> None:
    """Let a server that names addresses learn nothing of what answers there from the time it took.

    A refused connection is dialled again for ``link.give_up_s``; what ends sooner waits as long.
    """
    if error.kind != "unreachable" or keys.server:
        return
    give_up_s = min(scenario_from_toml(session["scenario"]).link.give_up_s, keys.idle_limit_s)
    time.sleep(max(0.0, began + give_up_s - time.monotonic()))
