"""A whole deployment on one machine: SuperLink and SuperNodes with TLS, keys and own homes.

Nothing of it is played: these are the processes, with the options, that ``docs/deploy.md`` starts
on several machines, on ports of loopback. Each is under a guard (``fedlora.launch.guard``), and all
end with the process that started them.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fedlora.launch.app_folder import write_app
from fedlora.launch.flower_commands import FlowerCommands
from fedlora.launch.guarded import (
    Place,
    StartedTogether,
    Watch,
    end_users_of,
    family,
    free_port,
    let_go,
    peak_resident,
    runs,
    start_guarded,
    start_superlink,
)
from fedlora.launch.keys import AUTHORITY, SERVER, SERVER_KEY, write_keys

RESTART_S = 10.0
"""How long a SuperNode that has ended is away before it is started again, as its unit does."""

_SERVER_APP, _CLIENT_APP = "flwr-serverapp", "flwr-clientapp"
_CONNECTED = "SuperNode ID"
# Flower's parts ask each other whether there is work, which costs little on one machine.
_PROMPT = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}


@dataclass
class Node:
    """A SuperNode of a deployment.

    Attributes
    ----------
    config
        Its node configuration, as ``--node-config`` takes it.
    guard
        The guard of its process.
    further
        What its environment has beside the others'.
    starts
        How often it was started.
    gone
        When it was seen to have ended, on ``time.monotonic``; None while it is there.
    """

    config: str
    guard: subprocess.Popen[bytes]
    further: Mapping[str, str] = field(default_factory=dict)
    starts: int = 1
    gone: float | None = None


class Deployment(StartedTogether):
    """A SuperLink with TLS and node authentication, and its SuperNodes, as a context manager.

    Parameters
    ----------
    folder
        For keys, logs, and the nodes' states; see ``log`` and ``states``.
    nodes
        Nodes for which keys are made.
    further
        What the processes' environment has beside Flower's own.

    Raises
    ------
    FedloraError
        When Flower does not start.
    """

    def __init__(self, folder: Path, nodes: int, further: Mapping[str, str] | None = None) -> None:
        self.folder = folder.absolute()
        self.certs = self.folder / "certs"
        self.nodes: dict[int, Node] = {}
        self.port = 0
        self.flower = FlowerCommands(self.folder / "flwr")
        self._keys = nodes
        self._further = {**_PROMPT, **(further or {})}
        self._superlink: subprocess.Popen[bytes] | None = None
        self._watch = Watch(_SERVER_APP)

    def log(self, node: int) -> Path:
        """Return the file with what a node's terminal would show."""
        return self.folder / f"node{node}.txt"

    def states(self, node: int) -> Path:
        """Return the folder where a node keeps its states, its log and its audit file."""
        return self.folder / f"states{node}"

    @property
    def working(self) -> bool:
        """Whether the SuperLink is there and still has a process for the run."""
        return self._superlink is not None and self._watch.works(self._superlink)

    def register(self, node: int) -> str:
        """Make a node's key known to the SuperLink and return the node's number there.

        Raises
        ------
        FedloraError
            When the SuperLink does not take it.
        """
        return self.flower.register(self.certs / f"node{node}.pub")

    def start_node(self, node: int, config: str, further: Mapping[str, str] | None = None) -> None:
        """Start a SuperNode with its key and a node configuration: pairs, or a ``.toml`` file."""
        guard = self._start_node(node, config, further or {})
        before = self.nodes.get(node)
        starts = 1 + (before.starts if before else 0)
        self.nodes[node] = Node(config, guard, further or {}, starts)

    def stop_node(self, node: int) -> None:
        """End a SuperNode in order."""
        let_go(self.nodes[node].guard)

    def has_ended(self, node: int) -> bool:
        """Tell whether a SuperNode's process is gone."""
        return self.nodes[node].guard.poll() is not None

    def connections(self, node: int) -> int:
        """Return how often the SuperLink has taken a node, by the node's log."""
        with contextlib.suppress(FileNotFoundError):
            return self.log(node).read_text(encoding="utf-8", errors="replace").count(_CONNECTED)
        return 0

    def look_after(self, restart_s: float = RESTART_S) -> None:
        """Start each SuperNode again that has been gone for so long, as its unit does.

        The SuperLink refuses a node that it holds for connected, for up to a minute after the node
        has died, so one start may not be enough.
        """
        for number, node in self.nodes.items():
            if node.guard.poll() is None:
                continue
            if node.gone is None:
                node.gone = time.monotonic()
            if time.monotonic() >= node.gone + restart_s:
                node.guard = self._start_node(number, node.config, node.further)
                node.starts, node.gone = node.starts + 1, None

    def cut_power(self, node: int) -> None:
        """Kill a SuperNode and all that it runs, without warning."""
        for process in family(self.nodes[node].guard):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.nodes[node].guard.wait(RESTART_S)

    def kill_client_app(self, node: int) -> int:
        """Kill what a SuperNode computes with at the moment, and return how many processes."""
        apps = [app for app in family(self.nodes[node].guard) if runs(app, _CLIENT_APP)]
        for app in apps:
            with contextlib.suppress(psutil.NoSuchProcess):
                app.kill()
        return len(apps)

    def peaks(self) -> dict[str, int]:
        """Return the most memory that server and devices compute with so far, in resident bytes.

        By ``server`` and the nodes' numbers; those alone whose process is there now.
        """
        found = {}
        guards = {str(number): node.guard for number, node in self.nodes.items()}
        if self._superlink is not None:
            guards["server"] = self._superlink
        for name, guard in guards.items():
            app = _SERVER_APP if name == "server" else _CLIENT_APP
            sizes = [peak_resident(p) for p in family(guard) if runs(p, app)]
            if sizes:
                found[name] = max(sizes)
        return found

    def submit(self, scenario: Path, out: Path) -> None:
        """Give the SuperLink a run whose folder is made; its events tell how it goes.

        Raises
        ------
        FedloraError
            When the SuperLink does not take it.
        """
        app = self.folder / "app"
        write_app(app, scenario, out)
        self.flower.submit(app)
        self._watch.begin()

    def stop(self) -> None:
        """End everything."""
        nodes = [node.guard for node in self.nodes.values()]
        guards = [*nodes, *((self._superlink,) if self._superlink else ())]
        let_go(*guards)
        for home in (self.flower.home, *map(self._home, self.nodes)):
            end_users_of(home)
        self.nodes.clear()
        self._superlink = None

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_keys(self.certs, ["127.0.0.1"], self._keys)
        authority = self.certs / AUTHORITY
        arguments = (
            "--enable-supernode-auth",
            *("--ssl-ca-certfile", authority, "--ssl-certfile", self.certs / SERVER),
            *("--ssl-keyfile", self.certs / SERVER_KEY),
            "--disable-runtime-dependency-installation",
        )
        environment = self.flower.environment | self._further
        place = Place(self.flower.home, self.folder / "superlink.txt", environment)
        context = ssl.create_default_context(cafile=authority)
        self._superlink, self.port = start_superlink(arguments, place, context)
        self.flower.connect(self.port, authority)

    def _home(self, node: int) -> Path:
        return self.folder / f"flwr-node{node}"

    def _start_node(
        self, node: int, config: str, further: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        home = self._home(node)
        environment = {**FlowerCommands(home).environment, **self._further, **further}
        arguments = (
            *("--superlink", f"127.0.0.1:{self.port}"),
            *("--root-certificates", self.certs / AUTHORITY),
            *("--auth-supernode-private-key", self.certs / f"node{node}"),
            *("--host", "127.0.0.1", "--port", str(free_port())),
            *("--node-config", config),
        )
        return start_guarded(
            "flower-supernode", arguments, Place(home, self.log(node), environment)
        )


def write_node_config(path: Path, keys: Mapping[str, str | int | bool]) -> None:
    """Write a node configuration as a file that ``--node-config`` takes."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
