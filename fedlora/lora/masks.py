"""One rank for each client and projection inside one batch: prefix masks on LoRA's A.

The batch holds the tokens of all clients. A forward hook multiplies the output of ``lora_A`` by a
mask of shape (tokens, r_max) whose row is 1 for the first r_k components. Autograd then gives
component j only the gradient of tokens whose client has a rank above j.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import numpy as np
import torch
from torch import nn

from fedlora.lora.layers import ADAPTER, LoraProjection


class RankMasks:
    """Masks of all projections for the tokens of the present batch.

    Parameters
    ----------
    projections
        Adapted projections, in order.
    r_max
        Number of components of each.

    Attributes
    ----------
    present
        The masks of the present batch; those of another are put in their place as they were. None
        where nothing is masked, without rows where nobody has a rank.
    """

    def __init__(self, projections: Sequence[LoraProjection], r_max: int) -> None:
        self.r_max = r_max
        self._whole: Sequence[torch.Tensor | None] = [None] * len(projections)
        self._part: ContextVar[Sequence[torch.Tensor | None] | None]
        self._part = ContextVar("masks of a part of the batch", default=None)
        for index, projection in enumerate(projections):
            A: nn.Module = projection.module.lora_A[ADAPTER]
            A.register_forward_hook(partial(self._apply, index))

    @property
    def present(self) -> Sequence[torch.Tensor | None]:
        """See the class; of a part of the batch in its context."""
        part = self._part.get()
        return self._whole if part is None else part

    @present.setter
    def present(self, masks: Sequence[torch.Tensor | None]) -> None:
        if self._part.get() is None:
            self._whole = masks
        else:
            self._part.set(masks)

    @contextmanager
    def part(self, tokens: slice) -> Iterator[None]:
        """Compute some of the batch's tokens in this context, beside others in other threads."""
        own = [None if mask is None else mask[tokens] for mask in self._whole]
        token = self._part.set(own)
        try:
            yield
        finally:
            self._part.reset(token)

    def set(
        self,
        ranks: Sequence[Sequence[int]],
        places: Sequence[int],
        device: torch.device,
        chosen: Iterable[int] | None = None,
    ) -> None:
        """Set the masks of a batch.

        Parameters
        ----------
        ranks
            For each client its rank at each projection.
        places
            Number of tokens of each client, padding included, in batch order.
        device
            Where the blocks compute.
        chosen
            Indices of the projections whose masks are set; None: all.
        """
        # torch's own wakes all threads for it, however few tokens there are
        client = torch.from_numpy(np.repeat(np.arange(len(places)), places)).to(device)
        made: dict[tuple[int, ...], torch.Tensor | None] = {}  # many projections have the same
        present = list(self.present)  # that of a batch which waits stays as it is
        for index in range(len(present)) if chosen is None else chosen:
            column = tuple(row[index] for row in ranks)
            if column not in made:
                made[column] = self._of(column, client)
            present[index] = made[column]
        self.present = present

    def set_idle(self, chosen: Iterable[int]) -> None:
        """Let projections compute as if they had no adapter."""
        idle = set(chosen)
        nothing = torch.zeros(0, self.r_max)
        self.present = [nothing if n in idle else mask for n, mask in enumerate(self.present)]

    def idle(self, index: int) -> bool:
        """Tell whether nobody in the batch has a rank at a projection."""
        mask = self.present[index]
        return mask is not None and not len(mask)

    def mask(self, index: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """Return a projection's mask, (tokens, r_max), or None where nothing is masked."""
        mask = self.present[index]
        return None if mask is None else mask.to(device, dtype)

    def _of(self, ranks: Sequence[int], client: torch.Tensor) -> torch.Tensor | None:
        """Return the mask for the clients' ranks at a projection; ``client`` is each token's."""
        if not any(ranks):
            return torch.zeros(0, self.r_max)
        if min(ranks) == self.r_max:  # everybody trains it whole, so nothing is multiplied
            return None
        r = torch.tensor(ranks, device=client.device)
        mask = torch.arange(self.r_max, device=client.device) < r[:, None]
        return mask.index_select(0, client)

    def _apply(
        self, index: int, module: nn.Module, inputs: object, output: torch.Tensor
    ) -> torch.Tensor | None:
        del module, inputs
        if self.idle(index):
            return torch.zeros_like(output)
        mask = self.mask(index, output.dtype, output.device)
        if mask is None:
            return None
        return (output.view(-1, self.r_max) * mask).view_as(output)
