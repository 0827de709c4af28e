"""Attention of new tokens over their own rows, each of another length."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fedlora.errors import FedloraError
from fedlora.generation.pages import RowPages
from fedlora.split.packed import is_causal


class BatchRows:
    """The rows of one batch; see ``fedlora.split.packed.RowCache``.

    Parameters
    ----------
    rows
        What is kept of each row. No other row's keys can be read through it.
    counts
        New tokens of each row.
    """

    def __init__(self, rows: Sequence[RowPages], counts: Sequence[int]) -> None:
        self._rows = rows
        self._counts = list(counts)
        self._seen: set[int] = set()

    @property
    def starts(self) -> list[int]:
        """Tokens that each row had before."""
        return [row.length for row in self._rows]

    def commit(self, layers: int) -> None:
        """Count the new tokens, which each of so many layers must have taken in once.

        Raises
        ------
        FedloraError
            When one has not, as with a module that makes its attention itself.
        """
        if len(self._seen) != layers:
            raise FedloraError(
                f"{layers - len(self._seen)} of {layers} blocks do not ask transformers' interface "
                "for attention, so that rows cannot be continued; set continues to False in the "
                "family"
            )
        for row, count in zip(self._rows, self._counts, strict=True):
            row.commit(count)

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        window: int | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """See ``RowCache``.

        Parameters
        ----------
        module
            The attention module, whose ``layer_idx`` says which layer it is.
        query, key, value
            Shape (1, heads, new tokens of all rows, width of a head), after rotary positions.
        window
            Tokens that a token sees of its row, itself included.
        options
            Scale and others of the family.

        Returns
        -------
        torch.Tensor
            Shape (1, new tokens, heads, width of a head).
        """
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer in self._seen or not is_causal(module, options):
            raise FedloraError(
                f"{type(module).__name__} attends in both directions, or does not say which layer "
                "it is, so that it cannot generate; use a causal model"
            )
        if key.shape != value.shape:
            raise FedloraError(
                f"{type(module).__name__} has values of another width than keys; generation knows "
                "no such model"
            )
        self._seen.add(layer)
        new = torch.split(torch.stack((key, value)), self._counts, dim=3)
        queries = torch.split(query, self._counts, dim=2)
        found = [
            _attend(module, q, *row.append(layer, kv), window, options)
            for row, q, kv in zip(self._rows, queries, new, strict=True)
        ]
        return torch.cat(found, dim=1)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    window: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attend in one row.

    Parameters
    ----------
    module
        The attention module.
    query
        Shape (1, heads, new tokens, width of a head).
    keys, values
        Shape (1, heads or fewer, all tokens of the row, width of a head).
    window, options
        As above.

    Returns
    -------
    torch.Tensor
        Shape (1, new tokens, heads, width of a head).
    """
    _, heads, new, width = query.shape
    shared, length = heads // keys.shape[1], keys.shape[2]
    if window is not None and length > window + new - 1:  # what no new token sees
        length = window + new - 1
        keys, values = keys[:, :, -length:], values[:, :, -length:]
    if options.get("softcap") is not None:
        # In no other than the family's own eager attention, where a mask is added to the scores.
        seen = _seen(new, length, window, query.device)
        hidden = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, -torch.inf)
        eager = sys.modules[type(module).__module__].eager_attention_forward
        output: torch.Tensor = eager(module, query, keys, values, hidden, **options)[0]
        return output
    mask = None if new == 1 else _seen(new, length, window, query.device).repeat(shared, 1)
    # Queries that share keys lie beside one another, so that no keys are copied for them.
    output = F.scaled_dot_product_attention(
        query.reshape(1, -1, shared * new, width),
        keys,
        values,
        attn_mask=mask,
        scale=options.get("scaling"),
    )
    return output.reshape(1, heads, new, width).transpose(1, 2)


def _seen(new: int, length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which of a row's last ``length`` tokens each new one sees, (new, length)."""
    back = torch.arange(length - new, length, device=device)[:, None]
    back = back - torch.arange(length, device=device)
    return (back >= 0) & (back < (window or length))
