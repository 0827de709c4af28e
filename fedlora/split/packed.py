"""Attention within each of several rows that lie one after the other, so that nothing is padded.

Blocks are given all rows' tokens as one sequence, with positions that start anew in each row, and
compute everything but attention on it as it is. Attention is Hugging Face's own, row by row.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import pairwise
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
    each = list(zip(*parts, strict=True))
    reaches = sliding_window is not None and max(lengths) > sliding_window
    if reaches or not _is_plain(key, value, options):
        found = [_attend(module, q, k, v, sliding_window, options) for q, k, v in each]
        return torch.cat(found, dim=1), None
    told: dict[str, Any] = {
        "dropout_p": options.get("dropout", 0.0),
        "scale": options.get("scaling"),
        "is_causal": is_causal(module, options),
        "enable_gqa": query.shape[1] > key.shape[1],
    }
    found = [nn.functional.scaled_dot_product_attention(q, k, v, **told) for q, k, v in each]
    return torch.cat(found, dim=2).transpose(1, 2), None


def _is_plain(key: torch.Tensor, value: torch.Tensor, options: Mapping[str, Any]) -> bool:
    """Tell whether transformers asks torch's attention for nothing but scale, order and heads.

    Then torch's is asked directly: what is around it takes as long as itself where rows are short.
    """
    from transformers.integrations.sdpa_attention import use_gqa_in_sdpa

    further = ("softcap", "position_bias", "cache")
    known = all(options.get(name) is None for name in further)
    return known and use_gqa_in_sdpa(None, key, value)


def _rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """View (1, heads, rows x length, width) as (rows, heads, length, width)."""
    _, heads, tokens, width = tensor.shape
    return tensor.view(heads, rows, tokens // rows, width).transpose(0, 1)


def attend_once(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: Sequence[slice],
    options: dict[str, Any],
) -> torch.Tensor:
    """Let one query of each row attend to the tokens that it sees.

    Parameters
    ----------
    module
        The attention module.
    query
        Shape (1, heads, rows, width of a head).
    key, value
        Of all rows' tokens, (1, heads or fewer, tokens, width of a head).
    seen
        Which of the tokens each row's query sees; row after row, none of them twice.
    options
        As in ``attend``.

    Returns
    -------
    torch.Tensor
        Shape (1, rows, heads, width of a head).
    """
    by_length: dict[int, list[int]] = {}
    for row, own in enumerate(seen):
        by_length.setdefault(own.stop - own.start, []).append(row)
    keys, values = (_parts(own, seen) for own in (key, value))
    found: list[torch.Tensor | None] = [None] * len(seen)
    for rows in by_length.values():  # one call for rows of one length
        k, v = (torch.cat([own[row] for row in rows]) for own in (keys, values))
        q = query[0].transpose(0, 1)[rows].unsqueeze(2)
        output = _attention(module, options)(module, q, k, v, None, **options)[0]
        for row, own in zip(rows, output, strict=True):
            found[row] = own
    return torch.cat([own for own in found if own is not None])[None]


def _parts(tensor: torch.Tensor, seen: Sequence[slice]) -> list[torch.Tensor]:
    """Cut (1, heads, tokens, width) into the tokens that each row sees.

    By one split: the gradient of a slice is as long as all rows, and there would be one a row.
    """
    ends = [0, *(end for own in seen for end in (own.start, own.stop)), tensor.shape[2]]
    return list(torch.split(tensor, [stop - start for start, stop in pairwise(ends)], dim=2)[1::2])


def is_causal(module: nn.Module, options: Mapping[str, Any]) -> bool:
    """Tell whether tokens see the ones before them alone."""
    told = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if told is None else told)


def _attention(module: nn.Module, options: Mapping[str, Any]) -> Any:
    """Return transformers' attention, or the family's own where scores have a soft cap."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if options.get("softcap") is not None:  # which no other than its own eager attention has
        return sys.modules[type(module).__module__].eager_attention_forward
    return sdpa_attention_forward


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attend in rows of one length; gives (rows, length, heads, width of a head)."""
    causal = is_causal(module, options)
    length = query.shape[2]
    if options.get("softcap") is not None:  # there a mask is added to the scores
        seen = _seen(length, window or length, causal, query.device)
        hidden: torch.Tensor | None
        hidden = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, -torch.inf)
    else:
        reaches = window is not None and length > window
        hidden = _seen(length, window or length, causal, query.device) if reaches else None
    output: torch.Tensor = _attention(module, options)(
        module, query, key, value, hidden, **options
    )[0]
    return output


def _seen(length: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
    """Return which tokens of a row see which, (length, length), as transformers' masks say."""
    place = torch.arange(length, device=device)
    back = place[:, None] - place
    return (back >= 0) & (back < window) if causal else back.abs() < window
