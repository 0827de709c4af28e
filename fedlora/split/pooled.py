"""The last block at the pooled position of each row alone, where nothing else of it is used.

A block computes each token by itself but for attention, which takes keys and values of all tokens
and the query of one. So the last block is entered twice: with all tokens until their keys and
values are there, and then with the pooled tokens, whose queries meet these. It stays Hugging Face's
code, whatever the order of its norms and residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from fedlora.split.blocks import Blocks
from fedlora.split.edge import pool_packed
from fedlora.split.packed import ROW_LENGTHS, attend_once, continuing, is_causal
from fedlora.split.stretch import Place

POOLS = ("cls", "last")
"""Ways of pooling that take one token of a row."""


class _KeysAreThereError(Exception):
    """Leaves the last block, of which no more is wanted for all tokens."""


class _PooledRows:
    """Notes keys and values of all tokens, and lets one query of each row meet them.

    Parameters
    ----------
    lengths
        Tokens of each row.
    places
        Place in its row of each row's query.
    """

    def __init__(self, lengths: Sequence[int], places: Sequence[int]) -> None:
        self._lengths, self._places = lengths, places
        self._noted: tuple[torch.Tensor, torch.Tensor] | None = None

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        window: int | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """See ``RowCache``."""
        if self._noted is None:
            self._noted = key, value
            raise _KeysAreThereError
        causal = is_causal(module, options)
        seen, start = [], 0
        for place, length in zip(self._places, self._lengths, strict=True):
            reach = window or length
            first = max(0, place - reach + 1)
            last = place if causal else min(length - 1, place + reach - 1)
            seen.append(slice(start + first, start + last + 1))
            start += length
        return attend_once(module, query, *self._noted, seen, options)


class _LastBlock(Place):
    """Notes what enters the block, and attends as pooling needs it."""

    entering: torch.Tensor
    rows: _PooledRows

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the block as far as keys and values."""
        self.entering = args[0] if args else kwargs["hidden_states"]
        with continuing(self.rows):
            return self.layer(*args, **kwargs)


def run_pooled(
    blocks: Blocks,
    packed: torch.Tensor,
    lengths: Sequence[int],
    how: str,
    first: int,
    enter: Callable[[], None],
) -> torch.Tensor:
    """Run blocks to the end, the last at one token of each row.

    Parameters
    ----------
    blocks
        Of a family that packs; more than one, where they begin with the model's first.
    packed, lengths, first
        As for ``Blocks.forward``.
    how
        One of ``POOLS``.
    enter
        Called before the last block is entered with one token of each row.

    Returns
    -------
    torch.Tensor
        What ``pool_packed`` makes of the states after the last block, (rows, width).
    """
    places = [0 if how == "cls" else length - 1 for length in lengths]
    parent_name, _, attribute = blocks.family.layers.rpartition(".")
    parent, whole = blocks.model.get_submodule(parent_name), blocks.layers
    last = _LastBlock(whole[-1])
    last.rows = _PooledRows(lengths, places)
    setattr(parent, attribute, nn.ModuleList([*whole[:-1], last]))
    try:
        return pool_packed(blocks(packed, lengths, first), lengths, how)  # it attends otherwise
    except _KeysAreThereError:
        pass
    finally:
        setattr(parent, attribute, whole)
    enter()
    begin = blocks.family.first_position(blocks.config)
    told = {
        "position_ids": torch.tensor(places, device=packed.device)[None] + begin,
        ROW_LENGTHS: [1] * len(lengths),
    }
    at = torch.tensor([*accumulate(lengths, initial=0)][:-1]) + torch.tensor(places)
    with continuing(last.rows):
        states = last.entering[:, at.to(packed.device)]
        found: torch.Tensor = blocks.run(states, told, len(whole) - 1, len(whole))
    return found[0]
