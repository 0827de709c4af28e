"""The client's two ends of the model: front (up to the cut) and back (after it)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from fedlora.split.blocks import Blocks, Cut
from fedlora.split.checkpoint import Checkpoint
from fedlora.split.embeddings import token_embedding
from fedlora.split.family import final_stage, find_family


class TokenEmbedding(nn.Module):
    """The checkpoint's token embedding, with its family's scale.

    Parameters
    ----------
    checkpoint
        Where the tensor is.
    dtype
        Precision of the frozen weights.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(token_embedding(checkpoint, dtype), requires_grad=False)
        family = find_family(checkpoint)
        self.scale = family.embedding_scale(checkpoint.config)
        still = family.still_token(checkpoint.config)
        known = still is not None and -len(self.weight) <= still < len(self.weight)
        self.still = still if known else None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map token ids (tokens,) to embeddings (tokens, width)."""
        embedded = F.embedding(ids, self.weight, padding_idx=self.still)
        if self.scale != 1.0:
            embedded = embedded * torch.tensor(self.scale, dtype=embedded.dtype)
        return embedded


class Front(nn.Module):
    """What makes vectors of a sample, and the blocks that stay on the client before the cut.

    Parameters
    ----------
    checkpoint
        Where the tensors are; only this part's are read.
    cut
        Where the model is cut.
    dtype
        Precision of the frozen weights.
    embedding
        The task's own module in place of the token embedding.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        cut: Cut,
        dtype: torch.dtype,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(checkpoint, dtype) if embedding is None else embedding
        self.dtype = dtype
        self.blocks: Blocks | None = None
        if cut.start > 0:
            self.blocks = Blocks(checkpoint, 0, cut.start, final=False, dtype=dtype)

    def forward(self, ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Embed packed token ids.

        Parameters
        ----------
        ids
            Tokens of all rows one after the other, shape (tokens,).
        lengths
            Tokens of each row.

        Returns
        -------
        torch.Tensor
            What goes over the cut, shape (tokens, width).
        """
        return self.onward(self.embedding(ids), lengths)

    def onward(self, embedded: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Take packed vectors (tokens, width) through the blocks before the cut, if any."""
        if self.blocks is None:
            return embedded
        embedded = embedded.to(self.dtype)
        if torch.is_grad_enabled():
            states: torch.Tensor = self.blocks(embedded, lengths)
            return states
        # Each row alone: a sample's smashed data are then the same bits whatever else is in the
        # batch, so that a row that is kept, or sent again, is the one that would be computed.
        rows = torch.split(embedded, list(lengths))
        return torch.cat([self.blocks(row, [len(row)]) for row in rows])

    @property
    def tokens(self) -> TokenEmbedding:
        """The token embedding; a task with a module of its own in its place has none."""
        if not isinstance(self.embedding, TokenEmbedding):
            raise TypeError(f"{type(self.embedding).__name__} is no token embedding")
        return self.embedding


class Back(nn.Module):
    """The blocks that stay on the client after the cut, and the final stage of a packed task.

    Parameters
    ----------
    checkpoint, cut, dtype
        As for ``Front``.
    final
        Whether the client runs the modules between the last block and the head. They run on the
        server where it pools.
    """

    def __init__(
        self, checkpoint: Checkpoint, cut: Cut, dtype: torch.dtype, *, final: bool
    ) -> None:
        super().__init__()
        self.blocks: nn.Module | None = None
        self.final: nn.Module = nn.Identity()
        if cut.stop < cut.blocks:
            self.blocks = Blocks(checkpoint, cut.stop, cut.blocks, final=final, dtype=dtype)
        elif final:
            self.final = final_stage(find_family(checkpoint), checkpoint, dtype)

    def forward(self, hidden: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Map packed hidden states (tokens, width) to what the head takes (tokens, width)."""
        if self.blocks is not None:
            hidden = self.blocks(hidden, lengths)
        output: torch.Tensor = self.final(hidden)
        return output


def pool_packed(hidden: torch.Tensor, lengths: Sequence[int], how: str) -> torch.Tensor:
    """Reduce packed hidden states (tokens, width) to one vector a row (rows, width).

    Parameters
    ----------
    hidden
        Tokens of all rows one after the other.
    lengths
        Tokens of each row.
    how
        ``last`` token, ``mean`` over tokens, or ``cls`` (first token).
    """
    sizes = torch.tensor(lengths, device=hidden.device)
    ends = sizes.cumsum(0)
    if how == "last":
        return hidden[ends - 1]
    if how == "cls":
        return hidden[ends - sizes]
    row = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), sizes)
    total = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, row, hidden)
    return total / sizes[:, None].to(hidden.dtype)
