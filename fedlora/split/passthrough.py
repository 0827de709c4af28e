"""Stand-ins for the embedding stage in a model part that begins after the first block."""

from __future__ import annotations

import torch
from torch import nn


class NoPosition(nn.Module):
    """Adds nothing where a model adds position embeddings."""

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Return a scalar zero, whatever the arguments."""
        del args, kwargs
        return torch.zeros(())


class HiddenStates(nn.Module):
    """Hands hidden states through where a model would embed tokens."""

    def forward(self, *args: object, inputs_embeds: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """Return ``inputs_embeds``."""
        del args, kwargs
        return inputs_embeds
