"""One row some of whose tokens have not passed the last blocks yet."""

from __future__ import annotations

import torch

from fedlora.generation.pages import PAGE_TOKENS, RowPages


class EarlyRow(RowPages):
    """Keys and values of the first blocks, those of the last ones, and what waits between them.

    A token that was taken from the representation after the first blocks leaves its hidden state
    there. The last blocks are given these before a later token attends to them, so that their keys
    and values are those of tokens that did not leave early.

    Attributes
    ----------
    deep
        Keys and values of the last blocks.
    """

    def __init__(self, page: int = PAGE_TOKENS) -> None:
        super().__init__(page)
        self.deep = RowPages(page)
        self._states: torch.Tensor | None = None

    @property
    def waiting(self) -> int:
        """Tokens that the last blocks have not seen."""
        return self.length - self.deep.length

    @property
    def held_tokens(self) -> int:
        """Tokens for which there is memory."""
        return max(super().held_tokens, self.deep.held_tokens)

    @property
    def held_bytes(self) -> int:
        """Bytes of keys, values and hidden states."""
        states = self._states
        return super().held_bytes + self.deep.held_bytes + (0 if states is None else states.nbytes)

    def wait(self, states: torch.Tensor) -> None:
        """Take in what came out of the first blocks, shape (tokens, width)."""
        before = self._states
        self._states = states if before is None else torch.cat((before, states))

    def next_states(self, count: int) -> torch.Tensor:
        """Return what the last blocks have to be given next, of so many tokens."""
        assert self._states is not None, "tokens wait"
        return self._states[:count]

    def passed(self, count: int) -> None:
        """Forget the hidden states of tokens that the last blocks have seen now."""
        states = self._states
        self._states = None if states is None or len(states) == count else states[count:].clone()

    def crop(self, length: int) -> None:
        """See ``RowPages``."""
        super().crop(length)
        self.deep.crop(min(length, self.deep.length))
        states, left = self._states, length - self.deep.length
        self._states = None if states is None or left == 0 else states[:left].clone()
