"""The server's blocks with an adapter, for rows that go on: all clients' new tokens at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.generation.early_rows import EarlyRow
from fedlora.generation.pages import PAGE_TOKENS, RowPages
from fedlora.generation.stage import Stage
from fedlora.geometry import Geometry
from fedlora.lora.device import check_device
from fedlora.lora.export import Adapter
from fedlora.lora.targets import choose_targets
from fedlora.split import DTYPES, Checkpoint, Cut, final_stage, find_family
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


@dataclass(frozen=True)
class WaitingTokens:
    """The next tokens of one row that the last blocks have not seen.

    Attributes
    ----------
    pages
        What is kept of the row.
    count
        How many of those that wait.
    ranks
        Rank of the row's client at each projection.
    """

    pages: EarlyRow
    count: int
    ranks: Sequence[int]


class GenerationEngine:
    """Frozen blocks with an adapter that any row uses at ranks of its own.

    Parameters
    ----------
    checkpoint
        The whole model.
    scenario
        The run's; model, LoRA, task and compute sections are used.
    leave_after
        Let tokens leave after so many blocks of the whole model; see ``EarlyRow``.

    Attributes
    ----------
    geometry
        Which blocks are here, and how wide what crosses is.
    leave_after
        Blocks of the whole model after which a token may leave; 0: none does.
    most_tokens
        Positions that the model has.
    version
        Digest of the adapter; keys and values are of one version.

    Raises
    ------
    FedloraError
        When the task or the family cannot generate, or no token can leave there.
    """

    def __init__(self, checkpoint: Checkpoint, scenario: Scenario, *, leave_after: int = 0) -> None:
        check_generates(checkpoint, scenario)
        self.geometry = geometry = Geometry.of(scenario, checkpoint)
        self.most_tokens = most_tokens(checkpoint)
        check_device(scenario.compute.device)
        self.device = torch.device(scenario.compute.device)
        self.dtype = DTYPES[scenario.model.dtype]
        cut = geometry.cut
        if leave_after:
            check_leaves(scenario, cut, leave_after)
        self.leave_after = leave_after
        between = leave_after or cut.stop
        place = checkpoint, scenario, self.device, self.dtype
        self._first = Stage(*place, cut.start, between, geometry.server_final and not leave_after)
        self.projections = list(self._first.projections)
        self._last: Stage | None = None
        self._early: nn.Module = nn.Identity()
        if leave_after:
            self._last = Stage(*place, between, cut.stop, geometry.server_final)
            self.projections += self._last.projections
            if geometry.server_final:
                stage = final_stage(find_family(checkpoint), checkpoint, self.dtype)
                self._early = stage.to(self.device)
        stages = [stage for stage in (self._first, self._last) if stage is not None]
        choose_targets([name for stage in stages for name in stage.linear], scenario.lora.targets)
        self.blocks = self._first.blocks
        self._alpha, self.r_max = scenario.lora.alpha, scenario.lora.r_max
        self.version = ""

    def new_row(self, page: int = PAGE_TOKENS) -> RowPages:
        """Return what keeps a row of this engine."""
        return RowPages(page) if self._last is None else EarlyRow(page)

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
        """Run the new tokens of all rows as one batch, up to where tokens may leave.

        Parameters
        ----------
        rows
            Of any length, any age and any ranks, each with pages of its own, which ``new_row`` made
            where tokens may leave.

        Returns
        -------
        list of torch.Tensor
            What may go down for each row, fp32, shape (new tokens, width). Pages hold the new
            tokens then; where this raises, they are as they were.
        """
        counts = [len(row.activation) for row in rows]
        packed = torch.cat([row.activation for row in rows]).to(self.device, self.dtype)
        ranks = [row.ranks[: len(self._first.projections)] for row in rows]
        output = self._first.run(packed, [row.pages for row in rows], ranks, counts)
        if self._last is not None:
            for row, states in zip(rows, torch.split(output, counts), strict=True):
                assert isinstance(row.pages, EarlyRow)
                row.pages.wait(states)
            output = self._early(output)
        return list(torch.split(output.float().cpu(), counts))

    @torch.inference_mode()
    def finish(self, rows: Sequence[WaitingTokens]) -> list[torch.Tensor]:
        """Run tokens that wait through the last blocks, those of all rows as one batch.

        Returns
        -------
        list of torch.Tensor
            What may go down for each row, fp32, shape (tokens, width); as for ``forward``.
        """
        assert self._last is not None, "tokens wait"
        counts = [row.count for row in rows]
        packed = torch.cat([row.pages.next_states(row.count) for row in rows])
        ranks = [row.ranks[len(self._first.projections) :] for row in rows]
        output = self._last.run(packed, [row.pages.deep for row in rows], ranks, counts)
        for row in rows:
            row.pages.passed(row.count)
        return list(torch.split(output.float().cpu(), counts))


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
            "train.embedding is true, so that the clients have trained token embeddings, which "
            "devices that generate do not have; generate from a run with train.embedding=false, "
            "or, where front.share is round or step, use fedlora infer or export --format merged"
        )


def check_leaves(scenario: Scenario, cut: Cut, leave_after: int) -> None:
    """Refuse a block after which no token can leave.

    Raises
    ------
    FedloraError
        See above.
    """
    told = f"--leave-after is {leave_after}"
    if cut.stop - cut.start < 2:
        raise FedloraError(
            f"{told}, and the server has one block, within which no token can leave; leave it out"
        )
    if not cut.start < leave_after < cut.stop:
        raise FedloraError(
            f"{told}, and the server has blocks {cut.start} to {cut.stop - 1} of {cut.blocks}; "
            f"give {cut.start + 1} to {cut.stop - 1}"
        )
    if cut.stop < cut.blocks:
        raise FedloraError(
            f"{told}, and the device's own {cut.blocks - cut.stop} last blocks "
            "(model.client_back) have to see every token; leave it out"
        )
    placed = [k for k in ("device_map", "max_memory") if getattr(scenario.compute, k)]
    if placed:
        raise FedloraError(
            f"{told}, and compute.{placed[0]} places the server's blocks as one run of blocks; "
            "leave one of them out"
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
