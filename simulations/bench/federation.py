"""The clients of a measurement in processes of their own, over the TLS stream."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedlora.config import Scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.link import Frame
from fedlora.link.stream import TokenStore
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.listener import StreamServer
from fedlora.link.stream.tls import create_identity
from fedlora.server.run import ServerRun
from fedlora.server.training import Recorder

_PROGRAM = "simulations.bench.edge_process"
_CONNECT_S = 180.0
_MAX_FRAME_BYTES = 1 << 28


@dataclass
class EdgeProcess:
    """One process with one or several clients.

    Attributes
    ----------
    facts
        What it reported when it had ended: peak memory, imports, what went wrong.
    """

    kind: str
    sessions: Sequence[Mapping[str, Any]]
    node_config: Mapping[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process has ended
        self.process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        order = {"kind": self.kind, "sessions": self.sessions, "node_config": self.node_config}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Close its input, wait for its last line, and note it; raise when it failed."""
        try:
            output, _ = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
        if self.process.returncode != 0 or not output:
            raise FedloraError(
                f"a client process ended with status {self.process.returncode}: {last}"
            )
        self.facts = json.loads(output.splitlines()[-1])
        if self.facts["error"]:
            raise FedloraError(f"a client process failed: {self.facts['error']} ({last})")


class Door:
    """A stream server with TLS, and the sessions that open its streams.

    Parameters
    ----------
    admit
        See ``StreamServer``.
    """

    def __init__(self, admit: Any) -> None:
        self._tokens = TokenStore()
        self.stream = StreamServer(
            "127.0.0.1",
            0,
            identity=create_identity(),
            max_frame_bytes=_MAX_FRAME_BYTES,
            admit=admit,
            tokens=self._tokens,
            hello_timeout_s=_CONNECT_S,
        )

    def session(self, client: int, **fields: Any) -> dict[str, Any]:
        """Return what a client must know to connect, as JSON values."""
        certificate = self.stream.certificate_pem
        assert certificate is not None
        return {
            "address": f"127.0.0.1:{self.stream.port}",
            "certificate": certificate.decode(),
            "token": self._tokens.grant(str(client), _CONNECT_S),
            "client": client,
            **fields,
        }


class Trained(Protocol):
    """What is trained; see ``Workload``."""

    scenario: Scenario

    @property
    def states(self) -> str:
        """Folder where clients keep their state between rounds."""

    def node_config(self, client: int) -> dict[str, Any]:
        """Return what one client's own process is told."""


@contextmanager
def over_tls(
    workload: Trained, recorder: Recorder, hosts: int = 0
) -> Iterator[tuple[ServerRun, list[EdgeProcess]]]:
    """Build the server and connect every client over the stream.

    Parameters
    ----------
    workload
        What is trained.
    recorder
        Where progress goes.
    hosts
        Processes that share the clients among them; 0 gives each client a process and its own data.

    Yields
    ------
    tuple
        The server, and the processes. On leaving, the sessions are ended and the processes' last
        words are read.
    """
    scenario, clients = workload.scenario, range(workload.scenario.federation.clients)
    server = ServerRun(scenario, recorder)
    door = Door(lambda hello, _grantee: server.admit(hello))
    shared = {
        "scenario": scenario_to_toml(scenario),
        "clients": len(clients),
        "run": secrets.token_hex(8),
        "keep": workload.states,
        "ledgers": "",
    }
    sessions = [door.session(client, **shared) for client in clients]
    if hosts:
        processes = [EdgeProcess("host", sessions[place::hosts]) for place in range(hosts)]
    else:
        processes = [
            EdgeProcess("device", [session], workload.node_config(client))
            for client, session in enumerate(sessions)
        ]
    try:
        for link in accept_all(door.stream, processes, len(clients)):
            server.join(link, link.hello)
        yield server, processes
        server.end()
        for process in processes:
            process.end()
    finally:
        door.stream.stop()
        for process in processes:
            process.process.kill()


def accept_all(
    stream: StreamServer, processes: Sequence[EdgeProcess], clients: int
) -> Iterator[StreamLink]:
    """Yield the links of all clients, each of which has said that it is ready."""
    waited, found = 0.0, 0
    while found < clients:
        link = stream.accept(1.0)
        if link is not None:
            link.receive(_CONNECT_S)
            found += 1
            yield link
            continue
        waited += 1.0
        for process in processes:
            if process.process.poll() is not None:
                process.end()
        if waited >= _CONNECT_S:
            raise FedloraError(
                f"{found} of {clients} clients connected within {_CONNECT_S:g} s; run on a machine "
                "that is less busy"
            )


def admit_all(hello: Frame, grantee: str) -> Mapping[str, Any]:
    """Admit whoever holds a token."""
    del hello, grantee
    return {}
