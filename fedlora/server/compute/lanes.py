"""A batch's rows in two lanes side by side, each in a thread of its own.

Whole rows keep a CPU's cores busier than shares of each small operation: what is between two matrix
products (norms, attention row by row, LoRA's few columns, autograd itself) is too small to be
shared out, and waits for one core. Rows do not depend on each other, so a lane is the same code on
fewer of them; the lanes' gradients are added in their order, whichever ends first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from fedlora.config import Scenario
from fedlora.lora.client_gradients import ClientGradients
from fedlora.lora.masks import RankMasks
from fedlora.split import Blocks
from fedlora.threads import compute_with

Found = TypeVar("Found")

LANES = 2
LEAST_NUMBERS = 1 << 13
"""Numbers in a batch's states from which lanes pay. Where OpenMP's threads spin, which fedlora's
processes do not let them, that is at ten times as many."""


class Part(Protocol):
    """What is asked of one client's rows of a batch; see ``ClientRows``."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""

    @property
    def ranks(self) -> Sequence[int]:
        """Rank at each projection."""


Work = Callable[[Blocks, Sequence[Part], torch.Tensor], torch.Tensor]
"""Runs some of the blocks on rows' packed states, (tokens, width)."""


@dataclass(frozen=True)
class LaneRows:
    """Those of a client's rows that are in a lane; see ``Part``."""

    lengths: Sequence[int]
    ranks: Sequence[int]


@dataclass(frozen=True)
class Lane:
    """A part of a batch.

    Attributes
    ----------
    blocks
        The blocks, whose list of layers is this lane's own.
    rows
        The clients' rows.
    tokens, clients
        Which of the batch's tokens and clients they are.
    """

    blocks: Blocks
    rows: Sequence[Part]
    tokens: slice
    clients: slice


class Lanes:
    """Runs work on a batch, in two lanes where that is faster.

    That is on the CPU with an even number of torch's threads, half of which each lane gets, unless
    passes draw at random (``lora.dropout``), blocks are elsewhere or computed again
    (``compute.device_map``, ``compute.checkpoint``), or the family pads its rows.

    Parameters
    ----------
    blocks, masks, by_client
        The server's part of the model, its rank masks, and each client's gradients where they are
        kept apart: no client is divided then.
    scenario
        Its LoRA and compute sections are used.

    Attributes
    ----------
    used
        Whether there are lanes, threads and the batch's size apart.
    """

    def __init__(
        self,
        blocks: Blocks,
        masks: RankMasks,
        by_client: ClientGradients | None,
        scenario: Scenario,
    ) -> None:
        self._masks, self._by_client = masks, by_client
        compute, drops = scenario.compute, scenario.lora.dropout > 0
        on_cpu = torch.device(compute.device).type == "cpu" and not compute.places
        self.used = on_cpu and blocks.family.packs and not compute.checkpoint and not drops
        self._blocks = [blocks, *(_with_own_list(blocks) for _ in range(1, LANES))]

    def run(self, work: Work, rows: Sequence[Part], states: torch.Tensor) -> torch.Tensor:
        """Return what work makes of a batch's packed states, (tokens, width); masks are set."""
        lanes = self._divide(rows) if states.numel() >= LEAST_NUMBERS and self._threads else []
        if len(lanes) < LANES:
            return work(self._blocks[0], rows, states)
        if torch.is_grad_enabled():
            found: torch.Tensor
            found = _InLanes.apply(states, self, work, lanes, *self.trained)  # type: ignore[no-untyped-call]
            return found
        return torch.cat(self.forward(work, lanes, [states[lane.tokens] for lane in lanes]))

    def forward(
        self, work: Work, lanes: Sequence[Lane], parts: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return what work makes of each lane's states, with a graph if one is built here."""
        builds = torch.is_grad_enabled()

        def one(lane: Lane, part: torch.Tensor) -> torch.Tensor:
            with self._masks.part(lane.tokens), torch.set_grad_enabled(builds):
                return work(lane.blocks, lane.rows, part)

        return self._side_by_side(one, lanes, parts)

    def backward(
        self,
        lanes: Sequence[Lane],
        outputs: Sequence[torch.Tensor],
        inputs: Sequence[Sequence[torch.Tensor]],
        gradients: Sequence[torch.Tensor],
    ) -> list[tuple[torch.Tensor | None, ...]]:
        """Return each lane's gradients at its inputs, None where an output does not depend on one.

        The graphs stay, for whoever goes over them again.
        """

        def one(
            lane: Lane, output: torch.Tensor, own: Sequence[torch.Tensor], gradient: torch.Tensor
        ) -> tuple[torch.Tensor | None, ...]:
            if not output.requires_grad:  # its clients train nothing of what was computed
                return (None,) * len(own)
            there = self._by_client.part(lane.clients) if self._by_client else nullcontext()
            with there:
                return torch.autograd.grad(
                    output, own, gradient, retain_graph=True, allow_unused=True
                )

        return self._side_by_side(one, lanes, outputs, inputs, gradients)

    def _side_by_side(self, one: Callable[..., Found], *each: Sequence[Any]) -> list[Found]:
        """Call with each lane's arguments, and come back when no lane computes any more."""
        asked = [self._pool.submit(one, *own) for own in zip(*each, strict=True)]
        wait(asked)
        return [found.result() for found in asked]

    @cached_property
    def trained(self) -> list[nn.Parameter]:
        """What is trained of the blocks."""
        return [p for p in self._blocks[0].parameters() if p.requires_grad]

    @cached_property
    def _threads(self) -> int:
        """Threads of each lane; 0 where there are no lanes."""
        threads = torch.get_num_threads()
        return threads // LANES if self.used and threads % LANES == 0 else 0

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(
            LANES, "lane", initializer=compute_with, initargs=(self._threads,)
        )

    def _divide(self, rows: Sequence[Part]) -> list[Lane]:
        """Cut a batch between the two rows, or clients, next to the middle of its tokens."""
        lengths = [length for own in rows for length in own.lengths]
        ends = [0, *accumulate(lengths)]  # tokens before each row, and of all
        firsts = [0, *accumulate(len(own.lengths) for own in rows)]  # rows before each client
        cuts = firsts[1:-1] if self._by_client is not None else range(1, len(lengths))
        if not cuts:
            return []
        cut = min(cuts, key=lambda row: abs(2 * ends[row] - ends[-1]))
        return [
            self._lane(place, rows, firsts, ends, first, last)
            for place, (first, last) in enumerate(((0, cut), (cut, len(lengths))))
        ]

    def _lane(
        self,
        place: int,
        rows: Sequence[Part],
        firsts: Sequence[int],
        ends: Sequence[int],
        first: int,
        last: int,
    ) -> Lane:
        """Make a lane of rows ``first`` to ``last - 1``."""
        there = [
            (client, own.lengths[max(0, first - begin) : max(0, last - begin)])
            for client, (own, begin) in enumerate(zip(rows, firsts, strict=False))
        ]
        there = [(client, lengths) for client, lengths in there if lengths]
        own = [LaneRows(lengths, rows[client].ranks) for client, lengths in there]
        clients = slice(there[0][0], there[-1][0] + 1)
        return Lane(self._blocks[place], own, slice(ends[first], ends[last]), clients)


class _InLanes(torch.autograd.Function):
    """A batch's work in lanes as one step of autograd; each lane has a graph of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        owner: Lanes,
        work: Work,
        lanes: Sequence[Lane],
        *trained: nn.Parameter,
    ) -> torch.Tensor:
        ctx.owner, ctx.lanes, ctx.trained = owner, lanes, trained
        ctx.entering = [
            states.detach()[lane.tokens].requires_grad_(states.requires_grad) for lane in lanes
        ]
        with torch.enable_grad():
            ctx.outputs = owner.forward(work, lanes, ctx.entering)
        ctx.sizes = [len(output) for output in ctx.outputs]
        return torch.cat([output.detach() for output in ctx.outputs])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        enters = ctx.needs_input_grad[0]
        found = ctx.owner.backward(
            ctx.lanes,
            ctx.outputs,
            [[*([part] if enters else []), *ctx.trained] for part in ctx.entering],
            torch.split(gradients[0], ctx.sizes),
        )
        states = torch.cat([own[0] for own in found]) if enters else None
        trained = (_sum(parts) for parts in zip(*(own[enters:] for own in found), strict=True))
        return states, None, None, None, *trained


def _sum(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    there = [part for part in parts if part is not None]
    return sum(there[1:], there[0]) if there else None


def _with_own_list(blocks: Blocks) -> Blocks:
    """Return blocks that share everything but the modules on the way to their list of layers.

    A pass over some of the blocks replaces that list for its time.
    """
    path = ["model", *blocks.family.layers.split(".")[:-1]]
    found = copy.copy(blocks)
    module: nn.Module = found
    for name in path:
        module._modules = dict(module._modules)
        child = copy.copy(module._modules[name])
        assert child is not None
        module._modules[name] = child
        module = child
    module._modules = dict(module._modules)
    return found
