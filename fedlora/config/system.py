"""The scenario's sections on who takes part and how: federation, link, ranks, compute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.checks import require
from fedlora.config.placement import is_away, parse_blocks

_MOST_CLIENTS = 100_000
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?")  # a name, or an address
_SIZE = re.compile(r"\d+(\.\d+)?[KMG]i?B", re.IGNORECASE)  # as accelerate reads it


@dataclass(frozen=True)
class FederationConfig:
    """Who takes part.

    Attributes
    ----------
    clients
        Number of clients; in a Flower simulation the number of SuperNodes decides.
    clients_per_round
        How many are drawn each round; 0 means all.
    min_clients
        Fewest connected clients a round may start with.
    connect_timeout_s
        How long the server waits for clients to connect.
    nodes
        Flower's node ids in the order of client numbers: entry k is client k, and nobody else.
        Empty: the first node that says a ``partition-id`` has it. A simulation needs none.
    """

    clients: int = 8
    clients_per_round: int = 0
    min_clients: int = 1
    connect_timeout_s: float = 300.0
    nodes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            1 <= self.clients <= _MOST_CLIENTS,
            f"federation.clients is {self.clients!r:.80}; set a number from 1 to {_MOST_CLIENTS}",
        )
        require(
            self.clients_per_round >= 0,
            f"federation.clients_per_round is {self.clients_per_round}; set 0 for all",
        )
        require(
            self.min_clients >= 1, f"federation.min_clients is {self.min_clients}; set 1 or more"
        )
        for node in self.nodes:
            require(
                node.isascii() and node.isdecimal() and int(node) < 1 << 64,
                f"federation.nodes has {node!r:.80}; write ids as `flwr supernode list` shows them",
            )
        twice = sorted({node for node in self.nodes if self.nodes.count(node) > 1})
        require(not twice, f"federation.nodes has {''.join(twice[:1])} twice; a node is one client")
        require(
            not self.nodes or len(self.nodes) >= self.clients,
            f"federation.nodes has {len(self.nodes)} entries, federation.clients is "
            f"{self.clients}; name a node for every client",
        )


@dataclass(frozen=True)
class LinkConfig:
    """How tensors travel.

    Attributes
    ----------
    activation, representation, gradient
        Codec of each payload: ``fp32``, ``bf16``, ``int8`` (a scale per token), or a plug-in.
    host, port, public_host
        Address the tensor stream binds (port 0: any free one) and the name clients dial.
    step_timeout_s
        How long a step waits for a client's answer before it goes on without it. A simulation goes
        on without nobody, so there it only ends a run that hangs.
    round_timeout_s
        How long the steps of a round may take in all; those that are left then are left out. 0 sets
        no limit beyond that of each step.
    max_misses
        A device that answers too late so often in a round is dropped; it may return in a later one.
    patience
        How long one device may keep the others waiting beyond one ``step_timeout_s`` in all, in
        seconds for each second of the run. A device that is slower takes part in fewer steps.
    give_up_s
        How long a client whose stream broke tries to come back, and the server waits for it.
    max_frame_mib
        Largest frame that is accepted.
    """

    activation: str = "fp32"
    representation: str = "fp32"
    gradient: str = "fp32"
    host: str = "127.0.0.1"
    port: int = 0
    public_host: str = ""
    step_timeout_s: float = 120.0
    round_timeout_s: float = 0.0
    max_misses: int = 3
    patience: float = 0.3
    give_up_s: float = 60.0
    max_frame_mib: int = 256

    def __post_init__(self) -> None:
        require(
            0 <= self.port <= 65535, f"link.port is {self.port}; set 0 (any free port) to 65535"
        )
        require(
            not self.public_host or _HOST.fullmatch(self.public_host) is not None,
            f"link.public_host is {self.public_host!r}; set a host name in ASCII or an address, "
            "without scheme and port",
        )
        require(
            self.step_timeout_s > 0,
            f"link.step_timeout_s is {self.step_timeout_s}; set seconds > 0",
        )
        require(
            self.round_timeout_s >= 0,
            f"link.round_timeout_s is {self.round_timeout_s}; set seconds, or 0 for no limit",
        )
        require(self.max_misses >= 1, f"link.max_misses is {self.max_misses}; set 1 or more")
        require(self.patience >= 0, f"link.patience is {self.patience}; set seconds from 0")
        require(self.give_up_s >= 0, f"link.give_up_s is {self.give_up_s}; set seconds from 0")
        require(
            self.max_frame_mib >= 1, f"link.max_frame_mib is {self.max_frame_mib}; set 1 or more"
        )


@dataclass(frozen=True)
class RanksConfig:
    """Which strategy chooses the ranks.

    Attributes
    ----------
    strategy
        Name of a registered strategy or ``module:Class``.
    options
        Keyword arguments of the strategy.
    statistics
        Whether clients are asked for statistics of their text (``ClientReport.statistics``). A
        device tells them only if its owner says so (``privacy-statistics``), a simulated client
        only without privacy.
    """

    strategy: str = "uniform"
    options: Mapping[str, Any] = field(default_factory=dict)
    statistics: bool = False


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured besides training.

    Attributes
    ----------
    every
        Evaluate on held-out rows every so many rounds (the last round always).
    batch_size
        Rows that each client contributes to an evaluation exchange.
    max_rows
        Held-out rows that a client may have; who claims more is refused.
    baseline
        Train the same head for the same steps on the frozen backbone first, for ``metric_before``.
    report
        Whether clients report held-out metrics although privacy is on. Without privacy they always
        do. In a simulation epsilon does not cover them; on a device the owner decides
        (``privacy-report``): not at all, with noise that is paid for, or exactly.
    """

    every: int = 1
    batch_size: int = 32
    max_rows: int = 100_000
    baseline: bool = True
    report: bool = False

    def __post_init__(self) -> None:
        require(self.every >= 1, f"evaluate.every is {self.every}; set 1 or more")
        require(self.max_rows >= 0, f"evaluate.max_rows is {self.max_rows}; set rows from 0")
        require(self.batch_size >= 1, f"evaluate.batch_size is {self.batch_size}; set 1 or more")


@dataclass(frozen=True)
class ComputeConfig:
    """Devices and threads.

    Attributes
    ----------
    device
        Torch device of the server's blocks, such as ``cpu`` or ``cuda:0``.
    device_map
        Where blocks are that are not on ``device``, by place: a device, ``cpu`` or ``disk`` (the
        checkpoint itself), and block numbers of the whole model, such as ``"16-23, 30"``. Blocks
        in ``cpu`` or on ``disk`` are computed on ``device``, one at a time.
    max_memory
        In place of ``device_map``: how much of each device, and of ``cpu``, the blocks may fill,
        such as ``"20GiB"``; accelerate places them, and what is left over stays on ``disk``.
    checkpoint
        Activation checkpointing: keep the inputs of blocks only, and compute each block anew in the
        backward pass. Blocks in ``cpu`` or on ``disk`` need it.
    threads
        CPU threads of the server; 0 means one for each core.
    edge_hosts
        Processes that host the simulated clients; 0 means one for each core. The result does not
        depend on it.
    """

    device: str = "cpu"
    device_map: Mapping[str, str] = field(
        default_factory=dict, metadata={"example": '{disk = "16-23, 30"}'}
    )
    max_memory: Mapping[str, str] = field(
        default_factory=dict, metadata={"example": '{"cuda:0" = "20GiB", cpu = "60GiB"}'}
    )
    checkpoint: bool = False
    threads: int = 0
    edge_hosts: int = 0

    def __post_init__(self) -> None:
        require(self.threads >= 0, f"compute.threads is {self.threads}; set 0 for all cores")
        require(
            self.edge_hosts >= 0, f"compute.edge_hosts is {self.edge_hosts}; set 0 for one a core"
        )
        require(
            not (self.device_map and self.max_memory),
            "compute.device_map and compute.max_memory are both set; keep one of them",
        )
        for name, limit in self.max_memory.items():
            require(
                isinstance(limit, str) and _SIZE.fullmatch(limit) is not None,
                f"compute.max_memory of {name} is {limit!r}; write a text such as 20GiB",
            )
        placed = [block for blocks in self.device_map.values() for block in parse_blocks(blocks)]
        twice = sorted({block for block in placed if placed.count(block) > 1})
        require(
            not twice,
            f"compute.device_map names block {twice[:1]} twice; give every block one place",
        )
        away = [place for place in self.device_map if is_away(place, self.device)]
        require(
            self.checkpoint or not away,
            f"compute.device_map puts blocks in {' and '.join(away)}; set compute.checkpoint to "
            "true, or backward would hold them all at once",
        )
