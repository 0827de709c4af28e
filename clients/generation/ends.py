"""The device's two ends of one text: token embedding and head, and blocks of its own if any."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clients.edge_model import EdgeModel
from fedlora.generation.attention import BatchRows
from fedlora.generation.pages import RowPages
from fedlora.split import Blocks, LanguageHead


class TextEnds:
    """What a device computes before and after the server's blocks for a text that grows.

    Parameters
    ----------
    model
        The client's parts.
    head
        The language head, as it was trained.
    """

    def __init__(self, model: EdgeModel, head: LanguageHead) -> None:
        self._front, self._back, self._head = model.front, model.back, head
        self._first, self._last = RowPages(), RowPages()

    @property
    def needs_all(self) -> bool:
        """Whether blocks follow here, which have to see every token's representation."""
        return self._back.blocks is not None

    @torch.inference_mode()
    def embed(self, ids: Sequence[int], position: int) -> torch.Tensor:
        """Return what goes over the cut for the next tokens, shape (tokens, width).

        Parameters
        ----------
        ids
            The tokens.
        position
            Place of the first; what was computed from there on is forgotten.
        """
        embedded: torch.Tensor = self._front.tokens(torch.tensor(ids))
        if self._front.blocks is None:
            return embedded
        return _extended(self._front.blocks, self._first, embedded.to(self._front.dtype), position)

    @torch.inference_mode()
    def logits(self, states: torch.Tensor, position: int, last: int) -> torch.Tensor:
        """Return the logits of the last tokens, shape (last, vocabulary), in fp32.

        Parameters
        ----------
        states
            What came back over the cut, for all new tokens where ``needs_all`` says so, else for
            the last ones; shape (tokens, width).
        position
            Place of the first of ``states``.
        last
            Of how many tokens logits are wanted.
        """
        hidden = states.to(self._front.dtype)
        if self._back.blocks is not None:
            hidden = _extended(self._back.blocks, self._last, hidden, position)
        hidden = self._back.final(hidden[-last:])
        logits: torch.Tensor = self._head(hidden)
        return logits


def _extended(
    blocks: torch.nn.Module, pages: RowPages, new: torch.Tensor, position: int
) -> torch.Tensor:
    assert isinstance(blocks, Blocks)
    pages.crop(position)
    batch = BatchRows([pages], [len(new)])
    hidden = blocks.extend(new, batch.starts, [len(new)], batch)
    batch.commit(len(blocks.layers))
    return hidden
