"""Each client's gradients smoothed over its steps, so that one turned round stands out.

Within one step the noise of small batches hides who is hostile: a gradient of usual size that is
merely turned round lies within the spread of the honest. Averaged over its own past (Karimireddy et
al. 2021, arXiv 2012.10333, section 5) each honest client shrinks towards what its data say, and the
spread that remains is that between clients' data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedlora.robust.base import Block

_Held = list[tuple[torch.Tensor, torch.Tensor]]


class ClientMomentum:
    """A moving average of every client's gradients, component by component, as in Adam's first.

    A component keeps its average while the client has a lower rank or sits out.

    Parameters
    ----------
    beta
        How much of the average stays at each step, from 0 (nothing is kept) to below 1.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._held: dict[str, _Held] = {}

    def blend(self, clients: Sequence[str], blocks: Sequence[Block]) -> list[Block]:
        """Take in one step's gradients, and return the averages in their place.

        Parameters
        ----------
        clients
            Whose they are, in order. A client that sent what is not finite keeps its average, and
            its gradients come back as they are.
        blocks
            As for ``RobustAverage.average``.
        """
        if not self.beta:
            return list(blocks)
        blended = [Block(block.values.clone(), block.present) for block in blocks]
        for place, client in enumerate(clients):
            if not all(bool(block.values[place].isfinite().all()) for block in blocks):
                continue
            held = self._held.setdefault(
                client,
                [
                    (torch.zeros_like(b.values[place]), torch.zeros_like(b.values[place, :, 0]))
                    for b in blocks
                ],
            )
            for block, mixed, (average, steps) in zip(blocks, blended, held, strict=True):
                present = block.present[place][:, None]
                moved = torch.lerp(block.values[place], average, self.beta)
                average.copy_(torch.where(present, moved, average))
                steps.add_(block.present[place])
                unbiased = average / (1 - self.beta**steps)[:, None]
                mixed.values[place] = torch.where(present, unbiased, 0.0)
        return blended

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        """Return averages and numbers of steps by client, for a checkpoint between rounds."""
        return {client: [t for pair in held for t in pair] for client, held in self._held.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[torch.Tensor]]) -> None:
        """Take back what ``state_dict`` gave."""
        self._held = {
            client: [
                (a.clone(), n.clone()) for a, n in zip(tensors[::2], tensors[1::2], strict=True)
            ]
            for client, tensors in state.items()
        }
