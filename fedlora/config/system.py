"""The scenario's sections on who takes part and how: federation, link, ranks, compute."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedlora.checks import check_host
from fedlora.config.placement import is_away, parse_blocks
from fedlora.config.ranges import check_ranges, within
from fedlora.errors import require, shown

Payload = Literal["activation", "representation", "gradient"]
PAYLOADS: tuple[Payload, ...] = ("activation", "representation", "gradient")
"""What crosses the cut, each by a codec of its own."""
End = Literal["end_weight", "end_gradient"]
ENDS: tuple[End, ...] = ("end_weight", "end_gradient")
"""What travels of heads and fronts that clients share, each by a codec of its own."""

_MOST_CLIENTS = 100_000
_TOKENS = "tokens"
_LONGEST_S = 1e7  # some four months; threads and sockets cannot wait for centuries
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

    clients: int = within(8, 1, _MOST_CLIENTS)
    clients_per_round: int = within(0, 1, _MOST_CLIENTS, zero="all")
    min_clients: int = within(1, 1, _MOST_CLIENTS)
    connect_timeout_s: float = within(300.0, 1.0, _LONGEST_S)
    nodes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self, "federation.")
        for node in self.nodes:
            require(
                node.isascii() and node.isdecimal() and int(node) < 1 << 64,
                f"federation.nodes has {shown(node)}; write ids as `flwr supernode list` shows "
                "them",
            )
        twice = sorted(node for node, n in Counter(self.nodes).items() if n > 1)
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
        Codec of each payload: ``fp32``, ``distinct`` (fp32, equal rows once), ``bf16``, ``int8`` (a
        scale per token), ``rotated`` (few bits a number, after a random rotation), ``entropy`` (the
        same step for all of a payload, not for activations), or a plug-in.
        Activations also as ``tokens``: which token it is, in place of its row of a frozen token
        embedding, which tells a server plainly what it could find out by the nearest row.
    activation_bits, representation_bits, gradient_bits
        Bits of a number under ``rotated`` (whole), ``entropy``, or a plug-in that takes them.
        Gradients are rounded at random, so that they are not biased.
    end_weight, end_gradient
        Codecs of what travels of heads and fronts that clients share: their weights, and where they
        are shared every step their gradients. By another codec than ``fp32`` clients compute with
        the weights as they arrive; not under ``privacy``, and not with ``r_cut``.
    end_weight_bits, end_gradient_bits
        As ``gradient_bits``.
    group, rotation_seed
        Under ``rotated``: numbers that share a scale, a power of two, and the seed of the signs
        with which they are rotated.
    r_cut
        Numbers of each row that cross the cut back and forth: 0 for all. Of a classifier whose head
        is shared every step, classes - 1: the directions alone that its head can tell apart, which
        is exact. The server then applies the head, which goes down at the end of a round only.
    reuse, reuse_mib
        Whether the server keeps the activations that it has seen, and clients name them by an
        identifier from then on: exact, where the embedding does not train. It keeps so many MiB in
        all, an equal share for each client, until the client leaves or the run ends.
    reuse_folder
        Folder on the server's disk in which it keeps them in place of memory, so that as much fits
        as ``reuse_mib`` says: readable for its own user alone, and deleted when they are forgotten.
    residual_mib
        MiB that the server keeps in all of representations that it has sent, an equal share for
        each client, which keeps as much: where ``representation`` is ``entropy`` (or a plug-in that
        remembers), a sample's next one is written as what is left of the last one. What is read is
        the same. Needs ``reuse``, by whose names samples are known.
    targets_only
        Whether a language model's representations and gradients travel at the positions alone that
        are learnt: exact, and the rest never leaves the server. Clients tell which they are, so not
        under ``privacy``, and not where blocks follow on the client.
    keep
        Share of a language model's tokens whose gradients are sent: drawn by chance, those with a
        large gradient more often, and weighted so that the mean stays what it is. Which they are
        tells of what is learnt, so not under ``privacy``.
    host, port, public_host
        Address the tensor stream binds (port 0: any free one) and the name clients dial; empty: the
        address itself, or this machine's loopback where that is every address.
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
    activation_bits: float = within(0.0, 2.0, 12.0, zero="the codec's own")
    representation_bits: float = within(0.0, 2.0, 12.0, zero="the codec's own")
    gradient_bits: float = within(0.0, 2.0, 12.0, zero="the codec's own")
    end_weight: str = "fp32"
    end_gradient: str = "fp32"
    end_weight_bits: float = within(0.0, 2.0, 12.0, zero="the codec's own")
    end_gradient_bits: float = within(0.0, 2.0, 12.0, zero="the codec's own")
    group: int = within(128, 16, 256)
    rotation_seed: int = within(0, 0, 2**31 - 1)
    r_cut: int = within(0, 1, 4095, zero="all")
    reuse: bool = True
    reuse_mib: int = within(1024, 1, 1 << 20)
    reuse_folder: str = ""
    residual_mib: int = within(64, 1, 1 << 20, zero="all is written whole")
    targets_only: bool = True
    keep: float = within(1.0, 0.01, 1.0)
    host: str = "127.0.0.1"
    port: int = within(0, 1, 65535, zero="any free port")
    public_host: str = ""
    step_timeout_s: float = within(120.0, 0.01, _LONGEST_S)
    round_timeout_s: float = within(0.0, 0.01, _LONGEST_S, zero="no limit")
    max_misses: int = within(3, 1, 10**6)
    patience: float = within(0.3, 0.0, 1e6)
    give_up_s: float = within(60.0, 0.0, _LONGEST_S)
    max_frame_mib: int = within(256, 1, 2047)

    def __post_init__(self) -> None:
        check_ranges(self, "link.")
        check_host("link.host", self.host)
        if self.public_host:
            check_host("link.public_host", self.public_host)
        require(
            self.group.bit_count() == 1,
            f"link.group is {self.group}; choose one of 16, 32, 64, 128, 256",
        )
        for payload in (*PAYLOADS[1:], *ENDS):
            require(
                getattr(self, payload) != _TOKENS,
                f"link.{payload} is {_TOKENS}, and only activations stand for tokens; choose "
                "another codec",
            )

    @property
    def sends_tokens(self) -> bool:
        """Whether activations go as the tokens that they stand for."""
        return self.activation == _TOKENS

    def residual_bytes(self, clients: int) -> int:
        """Return what each of so many clients, and the server of each, keeps of representations."""
        return (self.residual_mib << 20) // clients if self.reuse else 0

    def codec(self, payload: Payload | End, *, tokens: bool = True) -> dict[str, Any]:
        """Return what ``create_codec`` makes the codec of a payload from.

        Parameters
        ----------
        payload
            What it carries.
        tokens
            Whether it may be tokens; else their embeddings are sent, exactly.
        """
        bits: float = getattr(self, f"{payload}_bits")
        name: str = getattr(self, payload)
        found = {"name": name if tokens or name != _TOKENS else "distinct"}
        found["key"] = f"link.{payload}"
        chosen = {"bits": int(bits) if bits == int(bits) else bits} if bits else {}
        return {**found, **chosen, "group": self.group, "seed": self.rotation_seed}


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
    keep
        Which round's adapter and shared head a finished run leaves: the ``last``, or the ``best``
        by the task's held-out metric (then the metric is optimistic: it chose the round).
    scores
        Whether clients also tell histograms of their held-out rows' scores by class, from which
        areas under ROC curves follow. On a device only if its owner says so (``privacy-scores``),
        else it refuses the run; noised reports have none.
    generate
        Held-out prompts that each client has completed greedily at an evaluation; what is written
        is held against the record by ROUGE-L, BLEU and exact match. For language modelling with
        prompts, without privacy.
    generate_tokens
        Tokens of such a text at most; ``task.max_length`` bounds prompt and text together.
    patience
        End training after so many evaluations in a row none of which was better than the best.
    """

    every: int = within(1, 1, 10**6)
    batch_size: int = within(32, 1, 10**6)
    max_rows: int = within(100_000, 0, 10**9)
    baseline: bool = True
    report: bool = False
    scores: bool = False
    generate: int = within(0, 1, 10**6, zero="none")
    generate_tokens: int = within(64, 1, 10**6)
    keep: Literal["last", "best"] = "last"
    patience: int = within(0, 1, 10**6, zero="all rounds")

    def __post_init__(self) -> None:
        check_ranges(self, "evaluate.")


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
        backward pass. Blocks in ``cpu`` or on ``disk`` need it. The result is that of a run without
        it, but for rounding where ``task.pool`` is ``last`` or ``cls``: the last block is computed
        at all tokens then.
    reuse_blocks
        Whether the hidden states of a row after the lowest blocks, as far as its client has rank 0
        at all of their projections (or ``lora.targets`` names none), are kept and not computed
        again. They are computed from each row alone, so that runs repeat and resume to the last
        bit; beside a run without it they differ by rounding. Needs ``link.reuse``, as devices say
        there which rows may be kept; of others nothing is. Off where the embedding trains, and
        above the lowest adapted block where ``lora.dropout`` acts.
    reuse_blocks_mib
        MiB that it keeps in all, an equal share for each client, until the client leaves, trains a
        lower block, or the run ends. What does not fit is computed each time. The baseline, which
        trains no block, keeps what rows are after all of them within it, whatever ``reuse_blocks``
        is.
    reuse_blocks_folder
        Folder on the server's disk in which it keeps them in place of memory, as
        ``link.reuse_folder`` does. Where nothing can be written there, training goes on and says
        so.
    prepack_mib
        MiB that the blocks' frozen matrices may take where they are kept twice, each time in the
        layout in which oneDNN multiplies with them fastest, once forward and once backward (once
        alone where a server generates). Where all of them would take more they are kept once, as
        they are. For blocks in fp32 that are all on the CPU, without ``device_map`` and
        ``max_memory``; another layout rounds otherwise.
    threads
        CPU threads of the server; 0 means one for each core. Of an even number a large batch's rows
        are computed in two halves side by side, on half of them each. Another number may round
        otherwise.
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
    reuse_blocks: bool = False
    reuse_blocks_mib: int = within(1024, 1, 1 << 20)
    reuse_blocks_folder: str = ""
    prepack_mib: int = within(1024, 1, 1 << 20, zero="never")
    threads: int = within(0, 1, 1024, zero="all cores")
    edge_hosts: int = within(0, 1, 1024, zero="one a core")

    @property
    def places(self) -> bool:
        """Whether blocks are given places."""
        return bool(self.device_map or self.max_memory)

    def __post_init__(self) -> None:
        check_ranges(self, "compute.")
        require(
            not (self.device_map and self.max_memory),
            "compute.device_map and compute.max_memory are both set; keep one of them",
        )
        for name, limit in self.max_memory.items():
            require(
                isinstance(limit, str) and _SIZE.fullmatch(limit) is not None,
                f"compute.max_memory of {name} is {shown(limit)}; write a text such as 20GiB",
            )
        placed, twice = set[int](), list[int]()
        for blocks in self.device_map.values():
            named = parse_blocks(blocks)
            twice += [block for block, n in Counter(named).items() if n > 1 or block in placed]
            placed.update(named)
            if twice:
                break
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
