"""The blocks below the lowest one that is trained: computed without a graph, and once if wanted.

With a frozen embedding, what a client's row is after the blocks at all of whose projections its
rank is 0 is a function of the row. No gradient is needed from there down. Where it is kept
(``compute.reuse_blocks``) it is always computed from the row alone, as a matrix product's last bit
depends on what else is in the batch: so it has the same bits whether it was kept or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Protocol

import torch

from fedlora.config import Scenario
from fedlora.lora.client_gradients import ClientGradients
from fedlora.lora.layers import LoraProjection
from fedlora.lora.masks import RankMasks
from fedlora.server.compute.kept_states import KeptStates, row_digest, states_kept
from fedlora.server.compute.lanes import Lanes, Part
from fedlora.split import DTYPES, Blocks, pool_packed
from fedlora.split.pooled import POOLS, run_pooled


class Rows(Part, Protocol):
    """One client's part of a batch; see ``ClientRows``."""

    @property
    def activation(self) -> torch.Tensor:
        """Packed tokens, (tokens, width)."""

    @property
    def client(self) -> str:
        """Whose they are."""

    @property
    def keepable(self) -> bool:
        """Whether anything of them may be kept."""


class Prefix:
    """Runs a batch through the blocks, with a graph from where somebody trains.

    Where pooling takes one token of a row, the last block is computed at that token alone. It is
    computed at all of them where the family does not pack rows, where a client's gradients are kept
    apart, where activations are recomputed (``compute.checkpoint``), where it is the model's first
    block, too, which positions and norms before it go with, and in training with ``lora.dropout``,
    which would draw otherwise.

    Parameters
    ----------
    blocks, projections, masks
        The server's part of the model.
    scenario
        Its model, LoRA, training and compute sections are used.
    pool
        How rows become one vector each; None where they do not.
    by_client
        Each client's gradients, where they are kept apart: all clients' rows enter at the same
        block then.

    Attributes
    ----------
    lanes
        Runs stretches of blocks.
    one_token
        Whether the last block is computed at one token of each row.
    """

    def __init__(
        self,
        blocks: Blocks,
        projections: Sequence[LoraProjection],
        masks: RankMasks,
        scenario: Scenario,
        pool: str | None,
        by_client: ClientGradients | None,
    ) -> None:
        self._pool = pool
        together = by_client is not None
        self.lanes = Lanes(blocks, masks, by_client, scenario)
        whole = together or scenario.compute.checkpoint or not blocks.family.packs
        whole = whole or (blocks.start == 0 and len(blocks.layers) == 1)
        self.one_token = pool in POOLS and not whole
        self._blocks, self._masks, self._together = blocks, masks, together
        self._at = [p.layer - blocks.start for p in projections]
        self._end = len(blocks.layers)
        self._device = torch.device(scenario.compute.device)
        self._dtype = DTYPES[scenario.model.dtype]
        self._enters_trained = scenario.train.embedding
        self._also = bool(scenario.lora.also)  # at every block, whatever the ranks
        self._dropout = scenario.lora.dropout > 0
        self._kept: KeptStates | None = None
        if scenario.compute.reuse_blocks and not scenario.train.embedding:
            self._kept = states_kept(scenario.compute, scenario.federation.clients)

    def forward(
        self, rows: Sequence[Rows], *, train: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Run a batch, and set its masks.

        Parameters
        ----------
        rows
            The clients' uploads.
        train
            Whether a graph is built.

        Returns
        -------
        tuple
            The packed input where it is trained, else None, and what goes down: a vector for each
            row where rows are pooled, else one for each token.
        """
        if self._kept is not None:
            return None, self._staged(rows, self._kept, train=train)
        packed = torch.cat([r.activation for r in rows]).to(self._device, self._dtype)
        self._set_masks(rows, range(len(self._at)))
        enters = packed.requires_grad_() if train and self._enters_trained else None
        floor = graph = 0
        if train and enters is None and not self._also:
            graph = min(self._lowest(r.ranks) for r in rows)
            floor = min(graph, self._end - 1) if self.one_token else graph
        with torch.no_grad():
            states = self._through(rows, packed, 0, floor) if floor else packed
        with torch.set_grad_enabled(train and graph < self._end):
            return enters, self._to_the_end(rows, states, floor, train=train)

    def retain(self, clients: Collection[str]) -> None:
        """Forget what is kept of all other clients."""
        if self._kept is not None:
            self._kept.retain(clients)

    def close(self) -> None:
        """Forget what is kept, on disk too."""
        if self._kept is not None:
            self._kept.close()

    def _through(
        self, rows: Sequence[Part], states: torch.Tensor, first: int, last: int
    ) -> torch.Tensor:
        """Run packed states through blocks ``first`` to ``last - 1``; masks are set."""
        if first == last:
            return states

        def work(blocks: Blocks, own: Sequence[Part], part: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = blocks(part, _lengths(own), first, last)
            return found

        return self.lanes.run(work, rows, states)

    def _to_the_end(
        self, rows: Sequence[Part], states: torch.Tensor, first: int, *, train: bool
    ) -> torch.Tensor:
        """Run packed states from block ``first`` on, and pool them; masks are set."""
        if self._pool is None:
            return self._through(rows, states, first, self._end)
        if first == self._end or not self.one_token or (train and self._dropout):
            output = self._through(rows, states, first, self._end)
            return pool_packed(output, _lengths(rows), self._pool)
        how = self._pool

        def work(blocks: Blocks, own: Sequence[Part], part: torch.Tensor) -> torch.Tensor:
            def enter() -> None:
                places = [len(r.lengths) for r in own]
                last = self._within(self._end - 1, self._end)
                self._masks.set([r.ranks for r in own], places, self._device, last)

            return run_pooled(blocks, part, _lengths(own), how, first, enter)

        return self.lanes.run(work, rows, states)

    def _staged(self, rows: Sequence[Rows], kept: KeptStates, *, train: bool) -> torch.Tensor:
        """Let each client's rows enter at the lowest block that it trains."""
        depths = [self._lowest(r.ranks, drops=train and self._dropout) for r in rows]
        if self._together:
            depths = [min(depths)] * len(depths)
        states = [
            self._entering(r, depth, kept, train=train)
            for r, depth in zip(rows, depths, strict=True)
        ]
        for first, last in pairwise(sorted({*depths, self._end})):
            here = [place for place, depth in enumerate(depths) if depth <= first]
            self._set_masks([rows[place] for place in here], self._within(first, last))
            packed = torch.cat([states[place] for place in here])
            own = [rows[place] for place in here]
            ends = last == self._end
            with torch.set_grad_enabled(train):
                if ends:
                    output = self._to_the_end(own, packed, first, train=train)
                else:
                    output = self._through(own, packed, first, last)
            pooled = ends and self._pool is not None
            sizes = [len(r.lengths) if pooled else sum(r.lengths) for r in own]
            for place, part in zip(here, torch.split(output, sizes), strict=True):
                states[place] = part
        for place, depth in enumerate(depths):  # who trains nothing has passed all blocks
            if depth == self._end and self._pool is not None:
                states[place] = pool_packed(states[place], rows[place].lengths, self._pool)
        return torch.cat(states)

    def _entering(self, rows: Rows, depth: int, kept: KeptStates, *, train: bool) -> torch.Tensor:
        """Return a client's rows after their first ``depth`` blocks, packed."""
        if train:
            kept.forget_deeper(rows.client, depth)
        if depth == 0:
            return rows.activation.to(self._device, self._dtype)
        parts = torch.split(rows.activation, list(rows.lengths))
        owner = rows.client if rows.keepable else ""
        found = [self._row(part, owner, depth, kept) for part in parts]
        return torch.cat(found).to(self._device)

    def _row(self, row: torch.Tensor, client: str, depth: int, kept: KeptStates) -> torch.Tensor:
        """Return one row after its first ``depth`` blocks, none of which its client trains."""
        key = row_digest(row)
        known = kept.find(client, key)
        if known is not None and known.depth == depth:
            return known.states
        first, states = 0, row
        if known is not None and known.depth < depth:
            first, states = known.depth, known.states
        self._masks.set_idle(self._within(first, depth))
        with torch.no_grad():
            # in memory of its own, so that where it lay in a message does not matter either
            entering = states.to(self._device, self._dtype).clone()
            found: torch.Tensor = self._blocks(entering, [len(row)], first, depth).cpu()
        if known is None or known.depth < depth:
            kept.keep(client, key, depth, found)
        return found

    def _lowest(self, ranks: Sequence[int], *, drops: bool = False) -> int:
        """Return the lowest block with a rank, or with any projection where inputs are dropped.

        The blocks' number where there is none.
        """
        trained = (at for at, r in zip(self._at, ranks, strict=True) if r > 0 or drops)
        return min(trained, default=self._end)

    def _within(self, first: int, last: int) -> list[int]:
        return [index for index, at in enumerate(self._at) if first <= at < last]

    def _set_masks(self, rows: Sequence[Rows], chosen: Iterable[int]) -> None:
        places = self._blocks.places([r.lengths for r in rows])
        self._masks.set([r.ranks for r in rows], places, self._device, chosen)


def _lengths(rows: Sequence[Part]) -> list[int]:
    return [length for r in rows for length in r.lengths]
