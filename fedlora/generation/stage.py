"""Blocks that follow one another, with their part of the adapter, for rows that go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedlora.config import Scenario
from fedlora.generation.attention import BatchRows
from fedlora.generation.pages import RowPages
from fedlora.lora.fused import fuse
from fedlora.lora.layers import LoraProjection, add_lora, linear_names, set_adapter_dropout
from fedlora.lora.masks import RankMasks
from fedlora.lora.targets import targets_among
from fedlora.server.compute.placement import Placement
from fedlora.split import Blocks, Checkpoint


class Stage:
    """Frozen blocks with LoRA layers, which any row uses at ranks of its own.

    Parameters
    ----------
    checkpoint, scenario
        As for ``GenerationEngine``.
    device, dtype
        Where and how they compute.
    start, stop
        Range of blocks.
    final
        Whether the modules after the last block are included.

    Attributes
    ----------
    blocks
        The blocks.
    linear
        Names of the linear modules in the undivided base model.
    projections
        Those with LoRA layers, in order; none where ``lora.targets`` names no module here.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        scenario: Scenario,
        device: torch.device,
        dtype: torch.dtype,
        start: int,
        stop: int,
        final: bool,
    ) -> None:
        self._device = device
        self.blocks = Blocks(checkpoint, start, stop, final=final, dtype=dtype, load=False)
        placement = Placement(self.blocks, scenario.compute, scenario.model.few_bits)
        placement.load()
        self.linear = list(linear_names(self.blocks))
        self.projections: list[LoraProjection] = []
        lora = scenario.lora
        if here := targets_among(self.linear, lora.targets):
            lora = replace(lora, dropout=0.0, targets=here)
            self.projections = add_lora(self.blocks, lora, scenario.seed)
        placement.attach(self.projections, trains=False)
        set_adapter_dropout(self.projections, training=False)
        self._masks = RankMasks(self.projections, lora.r_max)
        self._masked: list[tuple[tuple[int, ...], int]] = []
        fuse(self.projections, self._masks, None)

    def run(
        self,
        packed: torch.Tensor,
        pages: Sequence[RowPages],
        ranks: Sequence[Sequence[int]],
        counts: Sequence[int],
    ) -> torch.Tensor:
        """Return what comes out of the blocks, shape (tokens, width); pages hold them then."""
        masked = [(tuple(own), count) for own, count in zip(ranks, counts, strict=True)]
        if masked != self._masked:  # mostly the same rows go on by one token each
            self._masks.set([own for own, _ in masked], counts, self._device)
            self._masked = masked
        batch = BatchRows(pages, counts)
        output = self.blocks.extend(packed, batch.starts, counts, batch)
        batch.commit(len(self.blocks.layers))
        return output
