"""A named Ray actor that hosts many simulated clients over one frozen embedding and one stream.

Flower's simulation serves at most a few handlers at once and keeps no client on a fixed worker, so
a handler that blocked until its session ended would deadlock a barrier over all clients. The
handler hands its session over instead and returns. The actor is detached, or it would die with the
worker that made it; the ServerApp ends it.

What is heavy is imported where it is needed: Ray puts the folder in which it was started, and
Flower its app's bundle, before all libraries of an actor, which first puts that right.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from fedlora.blame import naming_plugins, overdue
from fedlora.errors import FedloraError
from fedlora.import_path import Importing, leave_working_folder, put_bundles_last
from fedlora.launch.killed import ended_by_ray
from fedlora.launch.working_folder import go_where_started
from fedlora.reasons import REASON, whole_words

if TYPE_CHECKING:
    from fedlora.link import Frame

log = logging.getLogger("fedlora.edge")

NAMESPACE = "fedlora"


class EdgeHost:
    """Some of a simulation's clients.

    Parameters
    ----------
    session
        Session message of any of them: scenario, address, certificate, number of clients, name of
        the run, and the folders of their privacy ledgers and of their states.
    """

    def __init__(self, session: Mapping[str, Any]) -> None:
        leave_working_folder()
        put_bundles_last()
        go_where_started()
        with Importing():
            import torch

            from clients.build import load_parts
            from clients.simulated_data import SimulatedData
            from fedlora.config import scenario_from_toml
            from fedlora.link.stream.client.client import StreamClient
            from fedlora.registry import use_python_path

        torch.set_num_threads(1)
        scenario = scenario_from_toml(session["scenario"])
        use_python_path(scenario.python_path)
        with naming_plugins():
            self._data = SimulatedData(scenario, int(session["clients"]))
            self._parts = load_parts(scenario, self._data.labels)
        self._stream = StreamClient(
            session["address"],
            session["certificate"] or None,
            max_frame_bytes=scenario.link.max_frame_mib << 20,
            give_up_s=scenario.link.give_up_s,
            words=whole_words,
        )
        self._ledgers = session["ledgers"]
        self._keep = Path(session["keep"])
        self._run = str(session["run"])
        self._sessions: dict[int, Future[None]] = {}

    def attach(self, client: int, token: str) -> dict[str, Any]:
        """Build a client and open its session; return what is wrong, or nothing."""
        from clients.build import hello
        from clients.owner import OwnerTerms
        from clients.reports import device_report
        from clients.state_store import ClientStateStore, binding

        try:
            ledger = Path(self._ledgers) / str(client) if self._ledgers else None
            scenario, terms = self._parts.scenario, OwnerTerms(ledger)
            with naming_plugins():
                edge = self._data.build(self._parts, client, terms=terms, run=self._run)
                edge.report = device_report(scenario, client, self._stream)
            store = ClientStateStore(edge, self._keep / edge.name, binding(scenario, self._run))
            opening = hello(self._parts, edge, token)
            self._sessions[client] = self._stream.attach(
                edge.name, partial(_told, store.handle), opening
            )
        except FedloraError as error:
            return dict(whole_words(error))
        return {}

    def overdue(self) -> list[str]:
        """Return what is said of plug-ins that take long: nobody reads this process's log."""
        return overdue()

    def result(self, client: int) -> dict[str, Any]:
        """Return what is known of a client: how its session ended, and what it holds."""
        session = self._sessions.get(client)
        error = session.exception() if session is not None and session.done() else None
        held = self._data.holdings(client, self._parts.scenario)
        return {**held, "error": "" if error is None else str(error)}


def _told(handler: Callable[[Frame], Frame], request: Frame) -> Frame:
    """Answer a request, and say what failed: a simulated client has no log of its own.

    A device keeps that to itself, as an error may quote its data.

    Raises
    ------
    FedloraError
        What the handler raised, with the type of anything else and where it was raised.
    """
    try:
        with naming_plugins():
            return handler(request)
    except FedloraError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise FedloraError(
            f"the client failed to answer {request.kind} with {type(error).__name__}: {error} "
            f"({last.filename} line {last.lineno})"
        ) from error


def hand_over(session: Mapping[str, Any]) -> dict[str, Any]:
    """Give a session to its edge host, made if need be; return what is wrong, or nothing."""
    plain = dict(session)
    actor = ray.remote(EdgeHost).options(
        name=session["host"],
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
    )
    host = actor.remote(plain)
    try:
        told: dict[str, Any] = ray.get(host.attach.remote(plain["client"], plain["token"]))
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        cause = getattr(error, "cause", None)
        gone = "" if cause else ended_by_ray("its edge host", str(error))
        return {REASON: gone or str(cause or error).strip().splitlines()[-1]}
    return told


def result_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a client's edge host knows of it."""
    host = ray.get_actor(request["host"], namespace=NAMESPACE)
    result: dict[str, Any] = ray.get(host.result.remote(request["client"]))
    return result
