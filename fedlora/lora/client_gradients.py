"""Each client's own gradient of every factor, out of the one backward over all clients' tokens.

A weight's gradient is the product of what went into the module and the gradient of what came out,
summed over tokens. Hooks on ``lora_A`` and ``lora_B`` see both, and multiply the tokens of each
client apart. That costs what the factors' own gradients cost, whatever the number of clients, and
keeps clients x adapter numbers until the step is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import nn

from fedlora.lora.layers import ADAPTER, LoraProjection
from fedlora.robust.base import Block


class ClientGradients:
    """Collects gradients by client over the exchanges of a step.

    Parameters
    ----------
    projections
        Adapted projections, in order. Make this object after ``RankMasks``: what it sees of
        ``lora_A`` is what the masks let through.
    """

    def __init__(self, projections: Sequence[LoraProjection]) -> None:
        self._projections = projections
        self._r_max = projections[0].A.shape[0]
        self._slots: dict[str, int] = {}
        self._ranks: list[Sequence[int]] = []
        self._weights: list[float] = []
        self._batch: list[int] = []
        self._places: Sequence[int] = ()
        self._sums: list[torch.Tensor | None] = [None] * (2 * len(projections))
        self._paused = False
        self._part: ContextVar[slice] = ContextVar("clients of the batch", default=slice(None))
        self._adding = Lock()
        for index, projection in enumerate(projections):
            A: nn.Module = projection.module.lora_A[ADAPTER]
            B: nn.Module = projection.module.lora_B[ADAPTER]
            # Before the masks' hook, so that the gradient has come back through the mask.
            A.register_forward_hook(partial(self._watch, 2 * index), prepend=True)
            B.register_forward_hook(partial(self._watch, 2 * index + 1))

    def begin(
        self, clients: Sequence[str], places: Sequence[int], ranks: Sequence[Sequence[int]]
    ) -> None:
        """Say whose tokens the next batch holds.

        Parameters
        ----------
        clients
            In batch order.
        places
            Number of tokens of each, padding included.
        ranks
            Rank of each at every projection.
        """
        for client, own in zip(clients, ranks, strict=True):
            if client not in self._slots:
                self._slots[client] = len(self._slots)
                self._ranks.append(own)
                self._weights.append(0.0)
        self._batch, self._places = [self._slots[client] for client in clients], places

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let a backward pass that is not training go by."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @contextmanager
    def part(self, clients: slice) -> Iterator[None]:
        """Go back over some of the batch's clients in this context, others in other threads."""
        token = self._part.set(clients)
        try:
            yield
        finally:
            self._part.reset(token)

    def count(self, weights: Sequence[float]) -> None:
        """Add the samples or target tokens of the batch's clients; 0 for who gave no gradient."""
        for slot, weight in zip(self._batch, weights, strict=True):
            self._weights[slot] += weight

    def take(self) -> tuple[list[Block], torch.Tensor, list[str]]:
        """Return two blocks for each projection, A then B transposed, the clients' weights and ids.

        The values are means over each client's weight. Everything is forgotten for the next step.
        """
        weights = torch.tensor(self._weights)
        ranks = torch.tensor(self._ranks).T
        blocks = []
        for place, found in enumerate(self._sums):
            total = self._nothing(place) if found is None else found
            present = torch.arange(self._r_max) < ranks[place // 2][:, None]
            present = (present & (weights > 0)[:, None]).to(total.device)
            divisor = torch.where(weights > 0, weights, 1.0).to(total.device)
            blocks.append(Block(self._padded(total) / divisor[:, None, None], present))
        clients = list(self._slots)
        self.forget()
        return blocks, weights, clients

    def forget(self) -> None:
        """Begin a step anew."""
        self._slots, self._ranks, self._weights = {}, [], []
        self._sums = [None] * len(self._sums)

    def _watch(
        self,
        place: int,
        module: nn.Module,
        inputs: tuple[torch.Tensor, ...],
        output: torch.Tensor,
    ) -> torch.Tensor:
        """Let ``_seen`` see what went into a factor, and in backward the gradient of its output."""
        del module
        return _watched(output, inputs[0].detach(), partial(self._seen, place))

    def _seen(self, place: int, gradient: torch.Tensor, entered: torch.Tensor) -> None:
        """Take in what a hook saw: the narrow side of A is the gradient of what comes out."""
        narrow, wide = (entered, gradient) if place % 2 else (gradient, entered)
        self.add(place, narrow.flatten(0, -2), wide.flatten(0, -2))

    def add(self, place: int, narrow: torch.Tensor, wide: torch.Tensor) -> torch.Tensor | None:
        """Add each client's narrow^T wide to the sum of a factor.

        Parameters
        ----------
        place
            The factor: twice the projection's index, and 1 more for B.
        narrow, wide
            Shapes (tokens, r_max) and (tokens, width). Of A the gradient of what comes out and what
            goes in, of B what goes in and the gradient of what comes out.

        Returns
        -------
        torch.Tensor or None
            What was added, in batch order, (clients, r_max, width); None while pausing.
        """
        if self._paused:
            return None
        part = self._part.get()
        places, batch = self._places[part], self._batch[part]
        if len(set(places)) == 1:
            narrow, wide = (x.view(len(places), -1, x.shape[-1]).float() for x in (narrow, wide))
            found = torch.bmm(narrow.transpose(1, 2), wide)
        else:
            parts = (torch.split(x, list(places)) for x in (narrow, wide))
            found = torch.stack([n.float().T @ w.float() for n, w in zip(*parts, strict=True)])
        with self._adding:
            total = self._sums[place]
            if total is None and batch == list(range(len(self._slots))):
                self._sums[place] = found
                return found
            total = found.new_zeros(0, *found.shape[1:]) if total is None else total
            slots = torch.tensor(batch, device=found.device)
            self._sums[place] = self._padded(total).index_add(0, slots, found)
        return found

    def _nothing(self, place: int) -> torch.Tensor:
        """Return the sum of a factor where nobody in the step had a rank."""
        projection = self._projections[place // 2]
        factor = projection.B.T if place % 2 else projection.A
        return torch.zeros(0, *factor.shape, device=factor.device)

    def _padded(self, total: torch.Tensor) -> torch.Tensor:
        """Make room for clients that have come since."""
        missing = len(self._slots) - len(total)
        if not missing:
            return total
        return torch.cat([total, total.new_zeros(missing, *total.shape[1:])])


class _Watch(torch.autograd.Function):
    """The identity; in backward it calls with the gradient and a tensor of the forward.

    The tensor is saved as autograd saves its own, so that activation checkpointing drops it too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        kept: torch.Tensor,
        call: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> torch.Tensor:
        ctx.save_for_backward(kept)
        ctx.call = call
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        ctx.call(gradients[0], kept)
        return gradients[0], None, None


def _watched(
    output: torch.Tensor,
    kept: torch.Tensor,
    call: Callable[[torch.Tensor, torch.Tensor], None],
) -> torch.Tensor:
    if not output.requires_grad:
        return output
    watched: torch.Tensor = _Watch.apply(output, kept, call)  # type: ignore[no-untyped-call]
    return watched
