"""The server's blocks with an adapter, for rows that go on: all clients' new tokens at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.generation.attention import BatchRows
from fedlora.generation.pages import RowPages
from fedlora.geometry import Geometry
from fedlora.lora.device import check_device
from fedlora.lora.export import Adapter
from fedlora.lora.fused import fuse
from fedlora.lora.layers import add_lora, set_adapter_dropout
from fedlora.lora.masks import RankMasks
from fedlora.server.compute.placement import Placement
from fedlora.split import DTYPES, Blocks, Checkpoint, find_family
from fedlora.tasks import require_texts, task_class


@dataclass(frozen=True)
class NewTokens:
    """The next tokens of one row.

    Attributes
    ----------
    pages
        What is kept of the row; the new tokens are added.
    activation
        What came over the cut, shape (tokens, width).
    ranks
        Rank of the row's client at each projection.
    """

    pages: RowPages
    activation: torch.Tensor
    ranks: Sequence[int]


class GenerationEngine:
    """Frozen blocks with an adapter that any row uses at ranks of its own.

    Parameters
    ----------
    checkpoint
        The whole model.
    scenario
        The run's; model, LoRA, task and compute sections are used.

    Attributes
    ----------
    geometry
        Which blocks are here, and how wide what crosses is.
    most_tokens
        Positions that the model has.
    version
        Digest of the adapter; keys and values are of one version.

    Raises
    ------
    FedloraError
        When the task or the family cannot generate.
    """

    def __init__(self, checkpoint: Checkpoint, scenario: Scenario) -> None:
        check_generates(checkpoint, scenario)
        self.geometry = geometry = Geometry.of(scenario, checkpoint)
        self.most_tokens = most_tokens(checkpoint)
        check_device(scenario.compute.device)
        self.device = torch.device(scenario.compute.device)
        self.dtype = DTYPES[scenario.model.dtype]
        self.blocks = Blocks(
            checkpoint,
            geometry.cut.start,
            geometry.cut.stop,
            final=geometry.server_final,
            dtype=self.dtype,
            load=False,
        )
        placement = Placement(self.blocks, scenario.compute)
        placement.load()
        _turn_weights(self.blocks)
        lora = replace(scenario.lora, dropout=0.0)
        self.projections = add_lora(self.blocks, lora, scenario.seed)
        placement.attach(self.projections)
        set_adapter_dropout(self.projections, training=False)
        self._alpha, self.r_max = lora.alpha, lora.r_max
        self._masks = RankMasks(self.projections, self.r_max)
        self._masked: list[tuple[tuple[int, ...], int]] = []
        fuse(self.projections, self._masks, None)
        self.version = ""

    @torch.no_grad()
    def load(self, adapter: Adapter) -> str:
        """Use an adapter from now on, and return its version.

        Raises
        ------
        FedloraError
            When it is of another model, scale or size.
        """
        fitting = matched(adapter, [p.name for p in self.projections])
        if adapter.alpha * self.r_max != self._alpha * adapter.r_max:
            raise FedloraError(
                f"the adapter's scale is {adapter.alpha:g} / {adapter.r_max}, and the scenario's "
                f"lora.alpha / lora.r_max {self._alpha:g} / {self.r_max}; give both of one run"
            )
        for projection, (A, B) in zip(self.projections, fitting, strict=True):
            if A.shape != projection.A.shape or B.shape != projection.B.shape:
                raise FedloraError(
                    f"the adapter has {tuple(A.shape)} and {tuple(B.shape)} at {projection.name}, "
                    f"which takes {tuple(projection.A.shape)} and {tuple(projection.B.shape)}; "
                    "give the adapter of this run"
                )
            projection.A.copy_(A)
            projection.B.copy_(B)
        self.version = adapter.version
        return self.version

    def checked_ranks(self, ranks: Sequence[int]) -> tuple[int, ...]:
        """Return a rank vector that fits; raises ``FedloraError`` for another."""
        if len(ranks) != len(self.projections) or not all(0 <= r <= self.r_max for r in ranks):
            raise FedloraError(
                f"{len(ranks)} ranks up to {max(ranks, default=0)} do not fit "
                f"{len(self.projections)} projections of r_max {self.r_max}; give those of this run"
            )
        return tuple(ranks)

    @torch.inference_mode()
    def forward(self, rows: Sequence[NewTokens]) -> list[torch.Tensor]:
        """Run the new tokens of all rows as one batch.

        Parameters
        ----------
        rows
            Of any length, any age and any ranks, each with pages of its own.

        Returns
        -------
        list of torch.Tensor
            What goes down for each row, fp32, shape (new tokens, width). Pages hold the new tokens
            then; where this raises, they are as they were.
        """
        counts = [len(row.activation) for row in rows]
        packed = torch.cat([row.activation for row in rows]).to(self.device, self.dtype)
        masked = [(tuple(row.ranks), count) for row, count in zip(rows, counts, strict=True)]
        if masked != self._masked:  # mostly the same rows go on by one token each
            self._masks.set([ranks for ranks, _ in masked], counts, self.device)
            self._masked = masked
        batch = BatchRows([row.pages for row in rows], counts)
        output = self.blocks.extend(packed, batch.starts, counts, batch)
        batch.commit(len(self.blocks.layers))
        return list(torch.split(output.float().cpu(), counts))


def _turn_weights(blocks: nn.Module) -> None:
    """Lay the memory of linear weights out by input, as products with few rows are faster so.

    What is multiplied stays the same. With eight rows, as of a batch of clients, products of the
    widths of GPT-2 and SmolLM2 took 16 to 27% less on an Intel Xeon, and with one row the same.
    Weights that are on disk or on another device stay as they are.
    """
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            if weight.device.type == "cpu" and weight.is_contiguous() and weight.numel() > 1:
                weight.data = weight.data.t().contiguous().t()


def check_generates(checkpoint: Checkpoint, scenario: Scenario) -> None:
    """Refuse what has no text to generate, or rows that cannot be continued.

    Raises
    ------
    FedloraError
        See above.
    """
    require_texts(scenario.task.kind, "generation")
    if not task_class(scenario.task.kind).language():
        raise FedloraError(
            f"task.kind is {scenario.task.kind!r}, whose model writes no text; use fedlora infer"
        )
    family = find_family(checkpoint)
    if not family.generates or checkpoint.config.get("use_bidirectional_attention"):
        raise FedloraError(
            f"model_type {checkpoint.model_type!r} in {checkpoint.folder} cannot generate, as its "
            "rows cannot be continued; use fedlora infer"
        )
    if scenario.train.embedding:
        raise FedloraError(
            "train.embedding is true, so that each client has trained a token embedding of its "
            "own, which stays on its device; generate from a run with train.embedding=false"
        )


def most_tokens(checkpoint: Checkpoint) -> int:
    """Return how long a row may get.

    Rotary frequencies that change with the length (dynamic, longrope) would change under keys that
    are kept, and with the longest row of a batch. Such a model ends where they would begin to.
    """
    config = checkpoint.config
    most = checkpoint.size("max_position_embeddings", "n_positions")
    rope: Any = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for table in (rope, *rope.values()):
        if not isinstance(table, Mapping):
            continue
        kind = str(table.get("rope_type", table.get("type", "")))
        if "dynamic" in kind or kind == "longrope":
            original = table.get("original_max_position_embeddings") or config.get(
                "original_max_position_embeddings"
            )
            most = min(most, original or most)
    return most


def matched(adapter: Adapter, names: Sequence[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return an adapter's factors in the order of projections.

    Parameters
    ----------
    adapter
        Whose names are those of the model that it is for.
    names
        Of the projections, in the base model.

    Raises
    ------
    FedloraError
        When the adapter is for other projections.
    """
    own = list(adapter.factors)
    fits = len(own) == len(names) and all(
        f".{whole}".endswith(f".{name}") for whole, name in zip(own, names, strict=True)
    )
    if not fits:
        raise FedloraError(
            f"the adapter has {len(own)} projections, the first {own[0]}, and the model "
            f"{len(names)}, the first {names[0] if names else 'none'}; give the adapter of this run"
        )
    return list(adapter.factors.values())
