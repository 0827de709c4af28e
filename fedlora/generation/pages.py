"""Keys and values of one row's tokens, held in memory that grows by pages."""

from __future__ import annotations

import torch

PAGE_TOKENS = 32
"""Tokens of a page."""
_SLACK = 1.1
_TOKENS = 3  # axis


def pages_for(tokens: int, page: int = PAGE_TOKENS) -> int:
    """Return the tokens that whole pages for so many tokens hold."""
    return -(-tokens // page) * page


class RowPages:
    """What the blocks keep of one row.

    Each layer's keys and values are one tensor, so that attention reads them where they lie; it is
    moved to a larger one when a page has to be added. At rest a row holds at most 1.1 times its
    tokens and a page.

    Parameters
    ----------
    page
        Tokens of a page.

    Attributes
    ----------
    length
        Tokens that all layers have seen.
    """

    def __init__(self, page: int = PAGE_TOKENS) -> None:
        self.length = 0
        self._page = page
        self._held: dict[int, torch.Tensor] = {}

    @property
    def waiting(self) -> int:
        """Tokens that not all blocks have seen; see ``EarlyRow``."""
        return 0

    @property
    def held_tokens(self) -> int:
        """Tokens for which there is memory."""
        return max((held.shape[_TOKENS] for held in list(self._held.values())), default=0)

    @property
    def held_bytes(self) -> int:
        """Bytes of all layers' keys and values."""
        return sum(held.nbytes for held in list(self._held.values()))

    def append(self, layer: int, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in a layer's keys and values of new tokens; they count once ``commit`` is called.

        Parameters
        ----------
        layer
            Number of the layer, the same in every call.
        new
            Keys, then values, shape (2, 1, heads, new tokens, width of a head).

        Returns
        -------
        tuple
            Keys and values of all tokens, the new ones included, each of shape (1, heads, tokens,
            width of a head); views of what is held.
        """
        count = new.shape[_TOKENS]
        end = self.length + count
        held = self._held.get(layer)
        if held is None or held.shape[_TOKENS] < end:
            shape = (*new.shape[:_TOKENS], pages_for(end, self._page), new.shape[-1])
            grown = new.new_empty(shape)
            if held is not None:
                before = held.narrow(_TOKENS, 0, self.length)
                grown.narrow(_TOKENS, 0, self.length).copy_(before)
            self._held[layer] = held = grown
        held.narrow(_TOKENS, self.length, count).copy_(new)
        keys, values = held.narrow(_TOKENS, 0, end).unbind(0)
        return keys, values

    def commit(self, tokens: int) -> None:
        """Count new tokens that every layer has taken in."""
        self.length += tokens

    def crop(self, length: int) -> None:
        """Forget all tokens but the first ``length``, and give back pages that are free now."""
        if not 0 <= length <= self.length:
            raise ValueError(f"{length} tokens of {self.length} cannot be kept")
        self.length = length
        if self.held_tokens > _SLACK * length + self._page:
            for layer, held in self._held.items():
                self._held[layer] = held.narrow(_TOKENS, 0, pages_for(length, self._page)).clone()
