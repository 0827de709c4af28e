"""A batch of all clients' rows at the server: what was uploaded, and how it waits for gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedlora.errors import FedloraError


class SpoiledError(FedloraError):
    """The gradients of a batch overflow, so it was not added up."""


@dataclass(frozen=True)
class ClientRows:
    """What one client uploaded for a step.

    Attributes
    ----------
    activation
        Packed token representations, shape (sum of lengths, width).
    lengths
        Tokens of each row.
    ranks
        Rank at each projection.
    client
        Whose they are; needed where gradients are kept apart by client.
    keepable
        Whether anything of them may be kept beyond the step (``compute.reuse_blocks``).
    """

    activation: torch.Tensor
    lengths: Sequence[int]
    ranks: Sequence[int]
    client: str = ""
    keepable: bool = False


@dataclass(frozen=True)
class OpenBatch:
    """A batch that has gone forward and waits for its gradients.

    Attributes
    ----------
    rows
        What the clients uploaded.
    masks
        Their rank masks, which recomputation in backward needs again.
    input, output
        Of the blocks, the input where it is trained; the output holds the graph.
    """

    rows: Sequence[ClientRows]
    masks: Sequence[torch.Tensor | None]
    input: torch.Tensor | None
    output: torch.Tensor
