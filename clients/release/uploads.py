"""Noise on each upload of a gradient, drawn and paid anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from clients.owner import Leaving, Private, width_of
from clients.release.private import PrivateRelease, mean_sigma
from fedlora.privacy.mechanisms import blaming, shaped


class UploadRelease(PrivateRelease):
    """Releases what a mechanism makes of the gradient at the cut.

    Parameters
    ----------
    arguments
        See ``PrivateRelease``.
    head
        The client's head, whose weight is public where the mechanism needs it.
    """

    def __init__(self, *arguments: Any, head: nn.Module, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._head = head

    def __call__(
        self, gradient: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        """Charge the budget, then return the noised release.

        Raises
        ------
        BudgetSpentError
            When the plan or the owner's limit does not pay for it; nothing leaves.
        """
        weight = next(self._head.parameters()) if self.mechanism.needs_head else None
        classes = 0 if weight is None else len(weight)
        width = self.mechanism.width(classes, width_of(gradient))
        # how many numbers of each are clipped together
        token = self.mechanism.policy.unit == "token"
        numbers = [width if token else length * width for length in lengths]
        noises = self._upload_noise.take(samples, numbers)
        receipts = self._pay(samples, noises)
        self._sigma_now = mean_sigma([noise.applied for noise in noises])

        def release(g: torch.Tensor) -> torch.Tensor:
            with blaming(self.mechanism):
                found = self.mechanism.values(g, weight)
                values = shaped(self.mechanism, "values", found, (len(g), width), finite=False)
                return self._add_noise(values, lengths, noises)

        noised = gradient.map(release)
        return self.door.released(noised, self._charges.records(samples), receipts)
