"""The parts of the model that a client holds, and what it computes with them.

What its front makes of a sample are the smashed data (activations at the cut layer). With blocks on
both ends (``model.client_front``, ``model.client_back``) the split is U-shaped: labels, head and
the last blocks stay here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedlora.geometry import Geometry
from fedlora.split import Back, Front, pool_packed
from fedlora.tasks import Sample, Task, TaskLoss, loss_of, vectors_of


@dataclass(frozen=True)
class EdgeModel:
    """The frozen parts that all clients of a process share.

    Attributes
    ----------
    front, back
        The client's two ends of the model.
    task
        The problem.
    geometry
        What crosses the cut.
    """

    front: Front
    back: Back
    task: Task
    geometry: Geometry

    @property
    def width(self) -> int:
        """Width of the representation at the cut, as it arrives."""
        return self.geometry.representation_width

    def embed(self, samples: Sequence[Sample], lengths: Sequence[int]) -> torch.Tensor:
        """Return what goes up of a batch, shape (tokens, width).

        Raises
        ------
        FedloraError
            When the task's front makes other vectors than the model takes.
        """
        width, front = self.geometry.embedding_width, self.front.embedding
        # Without gradients each sample alone, as in ``Front.onward``; a look-up has the same bits.
        alone = not (self.task.tokens or torch.is_grad_enabled())
        batches = [[sample] for sample in samples] if alone else [samples]
        parts = [vectors_of(self.task, front, batch, width) for batch in batches]
        return self.front.onward(torch.cat(parts) if alone else parts[0], lengths)

    def rows_of(self, lengths: Sequence[int]) -> list[int]:
        """Return how many rows of the representation belong to samples of these lengths."""
        return [1] * len(lengths) if self.geometry.server_pools else list(lengths)

    def to_head(self, z: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return what the head is given.

        Parameters
        ----------
        z
            Representation of the samples as it came down, shape (rows, width).
        lengths
            Tokens of each sample.

        Returns
        -------
        torch.Tensor
            Shape (samples, width) for a pooled task, else (tokens, width).
        """
        if self.geometry.server_pools:
            return z
        hidden: torch.Tensor = self.back(z.to(self.front.dtype), lengths)
        if self.task.pooled:
            return pool_packed(hidden, lengths, self.task.config.pool).float()
        return hidden

    def loss(
        self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample], *, sample_mean: bool
    ) -> TaskLoss:
        """Return the loss and its gradient at the cut, through the client's own blocks if any.

        Parameters
        ----------
        head
            The client's head, whose own gradient is added where it trains.
        z
            As for ``to_head``.
        samples
            The batch.
        sample_mean
            See ``Task.loss``.
        """
        z.requires_grad_()
        hidden = self.to_head(z, [sample.length for sample in samples])
        loss = loss_of(self.task, head, hidden.detach(), samples, sample_mean=sample_mean)
        if hidden is z:
            return loss
        torch.autograd.backward(hidden, loss.gradient.to(hidden.dtype))
        assert z.grad is not None
        return TaskLoss(loss.total, loss.weight, z.grad)
