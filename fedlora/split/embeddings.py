"""The two vocabulary matrices of a checkpoint, tied or not, and the head that makes logits."""

from __future__ import annotations

import torch
from torch import nn

from fedlora.errors import FedloraError
from fedlora.split.blocks import embedding_width
from fedlora.split.checkpoint import Checkpoint
from fedlora.split.family import Loader, find_family

_HEAD = "lm_head.weight"
# BLAS slows down on a product as wide as a vocabulary: 57 GFLOP/s against 80 in slices of 1024.
_VOCABULARY_SLICE = 1024


class LanguageHead(nn.Module):
    """The output embedding, with what a family does to the logits.

    Parameters
    ----------
    weight
        Output embedding, shape (vocabulary, width).
    cap
        ``c`` in ``c tanh(x / c)``; 0 for none.
    scale
        Constant that multiplies the logits, before the cap.
    """

    def __init__(self, weight: torch.Tensor, cap: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.cap = cap
        self.scale = scale

    @classmethod
    def of(cls, checkpoint: Checkpoint, dtype: torch.dtype) -> LanguageHead:
        """Return a checkpoint's head; raises as ``language_head`` does."""
        family, config = find_family(checkpoint), checkpoint.config
        weight = language_head(checkpoint, dtype)
        return cls(weight, family.logit_cap(config), family.logit_scale(config))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map hidden states (tokens, width) to logits (tokens, vocabulary) in fp32."""
        logits = torch.empty(len(hidden), len(self.weight))
        for start in range(0, len(self.weight), _VOCABULARY_SLICE):
            place = slice(start, start + _VOCABULARY_SLICE)
            logits[:, place] = hidden @ self.weight[place].T
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits.div_(self.cap).tanh_().mul_(self.cap) if self.cap else logits


def token_embedding(checkpoint: Checkpoint, dtype: torch.dtype) -> torch.Tensor:
    """Return the input embedding (vocabulary, width).

    Where input and output embedding are tied, a checkpoint may hold it under either name.

    Raises
    ------
    FedloraError
        When the checkpoint lacks it, or its shape is not the configuration's.
    """
    family = find_family(checkpoint)
    name = family.embedding + ".weight"
    stored = Loader(checkpoint, family, dtype).name(name)
    if stored is None and family.ties(checkpoint.config):
        stored = _HEAD
    return _matrix(checkpoint, stored or name, dtype)


def language_head(checkpoint: Checkpoint, dtype: torch.dtype) -> torch.Tensor:
    """Return the output embedding (vocabulary, width): its own, or the token embedding if tied.

    Where a configuration ties them and the checkpoint holds two that differ, they are not tied, as
    in ``from_pretrained``.

    Raises
    ------
    FedloraError
        When the family has no language-model head, or the checkpoint lacks it; when its shape is
        not the configuration's.
    """
    family = find_family(checkpoint)
    if not family.causal:
        raise FedloraError(
            f"model_type {checkpoint.model_type!r} cannot be trained as a language model; "
            "set task.kind to classification"
        )
    embedding = Loader(checkpoint, family, dtype).name(family.embedding + ".weight")
    if not family.ties(checkpoint.config):
        if _HEAD in checkpoint.entries:
            return _matrix(checkpoint, _HEAD, dtype)
        raise FedloraError(
            f"{checkpoint.folder} has neither lm_head.weight nor tied embeddings; "
            "use a checkpoint that was saved as a causal language model"
        )
    if _HEAD in checkpoint.entries and embedding and not checkpoint.equal(_HEAD, embedding):
        return _matrix(checkpoint, _HEAD, dtype)
    return token_embedding(checkpoint, dtype)


def _matrix(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> torch.Tensor:
    """Return an embedding, whose rows must be as many as the configuration says."""
    matrix = checkpoint.share(name, dtype)
    expected = checkpoint.size("vocab_size"), embedding_width(checkpoint)
    if matrix.shape == expected:
        return matrix
    mend = (
        f"set vocab_size to {len(matrix)}, if its vocabulary was resized"
        if matrix.ndim == 2 and matrix.shape[1] == expected[1]
        else "weights and configuration must be of one checkpoint"
    )
    raise FedloraError(
        f"{name} in {checkpoint.folder} has shape {tuple(matrix.shape)}, and config.json says "
        f"{expected}; {mend}"
    )
