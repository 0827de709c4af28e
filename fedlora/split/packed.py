"""Attention within each of several rows that lie one after the other, so that nothing is padded.

Blocks are given all rows' tokens as one sequence, with positions that start anew in each row, and
compute everything but attention on it as it is. Attention is Hugging Face's own, row by row.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

import torch
from torch import nn

from fedlora.errors import FedloraError

ROW_LENGTHS = "row_lengths"
"""Keyword under which a model hands the lengths on to each of its attention modules."""
_NAME = "fedlora_packed"


class RowCache(Protocol):
    """What earlier tokens of a batch's rows have left behind, and attention over it."""

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        window: int | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Take in keys and values of new tokens and attend; see ``attend``."""


_cache: ContextVar[RowCache | None] = ContextVar("rows that are continued", default=None)


@contextmanager
def continuing(rows: RowCache) -> Iterator[None]:
    """Let attention in this context go on from what rows have left behind.

    Modules need not hand anything on for it.
    """
    token = _cache.set(rows)
    try:
        yield
    finally:
        _cache.reset(token)


@cache
def packed_attention() -> str:
    """Register the attention with transformers, and return the name to build a model with.

    No mask is registered with it, so that transformers builds none.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, attend)
    return _NAME


def positions(lengths: Sequence[int], first: int, device: torch.device) -> torch.Tensor:
    """Return the position of each packed token in its row, counted from ``first``; (tokens,)."""
    longest = torch.arange(first, first + max(lengths), device=device)
    return torch.cat([longest[:length] for length in lengths])


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' interface asks.

    Parameters
    ----------
    module
        The attention module.
    query, key, value
        Shape (1, heads, tokens, width of a head); keys and values may have fewer heads.
    attention_mask
        None.
    sliding_window
        Tokens that a token sees of its row, itself included.
    options
        Scale and others of the family, and the rows' lengths.

    Returns
    -------
    tuple
        What is attended to, shape (1, tokens, heads, width of a head), and None.

    Raises
    ------
    FedloraError
        When the model does not hand the rows' lengths on.
    """
    lengths = options.pop(ROW_LENGTHS, None)
    if (rows := _cache.get()) is not None and attention_mask is None:
        return rows.attend(module, query, key, value, sliding_window, options), None
    if lengths is None or attention_mask is not None:
        raise FedloraError(
            f"{type(module).__name__} is not told where rows end; set packs to False in its family"
        )
    if len(set(lengths)) == 1:  # one call for all
        q, k, v = (_rows(tensor, len(lengths)) for tensor in (query, key, value))
        return _attend(module, q, k, v, sliding_window, options).flatten(0, 1)[None], None
    parts = (torch.split(tensor, list(lengths), dim=2) for tensor in (query, key, value))
    found = [
        _attend(module, q, k, v, sliding_window, options) for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(found, dim=1), None


def _rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """View (1, heads, rows x length, width) as (rows, heads, length, width)."""
    _, heads, tokens, width = tensor.shape
    return tensor.view(heads, rows, tokens // rows, width).transpose(0, 1)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attend in rows of one length; gives (rows, length, heads, width of a head)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    length = query.shape[2]
    if options.get("softcap") is not None:
        # In no other than the family's own eager attention, where a mask is added to the scores.
        seen = _seen(length, window or length, causal, query.device)
        hidden: torch.Tensor | None
        hidden = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, -torch.inf)
        attention = sys.modules[type(module).__module__].eager_attention_forward
    else:
        reaches = window is not None and length > window
        hidden = _seen(length, window or length, causal, query.device) if reaches else None
        attention = sdpa_attention_forward
    output: torch.Tensor = attention(module, query, key, value, hidden, **options)[0]
    return output


def _seen(length: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
    """Return which tokens of a row see which, (length, length), as transformers' masks say."""
    place = torch.arange(length, device=device)
    back = place[:, None] - place
    return (back >= 0) & (back < window) if causal else back.abs() < window
