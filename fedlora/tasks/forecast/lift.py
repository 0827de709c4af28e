"""Few numbers at a client's end beside the many of the model."""

from __future__ import annotations

import math

import torch
from torch import nn

from fedlora.errors import FedloraError


class Lift(nn.Module):
    """A fixed map between the few numbers that a front makes, or a head reads, and the model's.

    Its rows are vectors of the orthonormal cosine transform (DCT-II) after the constant one, so it
    is the same everywhere and no weight travels.

    Parameters
    ----------
    own, width
        Numbers of the end (0: as many as the model), and of the model.

    Raises
    ------
    FedloraError
        When the end has as many as the model, or more.
    """

    basis: torch.Tensor | None

    def __init__(self, own: int, width: int) -> None:
        super().__init__()
        if own >= width:
            raise FedloraError(
                f"task.forecast.width is {own}, and a vector of the model has {width} numbers; set "
                "fewer, or 0 for all of them"
            )
        self.own = own or width
        basis = None
        if own:
            k, j = torch.arange(1, own + 1)[:, None], torch.arange(width)
            turns = math.pi / width * (k * (2 * j + 1)).double() / 2
            basis = (math.sqrt(2 / width) * torch.cos(turns)).float()
        self.register_buffer("basis", basis, persistent=False)

    def up(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return vectors of the model's width."""
        return vectors if self.basis is None else vectors @ self.basis

    def down(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the end's coordinates of vectors of the model's width."""
        return vectors if self.basis is None else vectors @ self.basis.T
