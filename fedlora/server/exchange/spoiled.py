"""A step that one client's figures spoil is computed again without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedlora.errors import ProtocolError
from fedlora.server.compute import MOST_NORM, ClientRows, OpenBatch, SplitEngine, SpoiledError
from fedlora.server.exchange.cohort import Cohort

REASON = "its figures lead beyond what floats hold, and would have spoilt the step for all"


class SoundStep:
    """Runs one batch forward and backward, and drops who makes either of them overflow.

    The others are asked nothing again: their rows and gradients are still there. Other batches may
    go forward or backward in between.

    Parameters
    ----------
    engine
        The server's compute.
    cohort
        Loses the culprits.
    """

    def __init__(self, engine: SplitEngine, cohort: Cohort) -> None:
        self._engine = engine
        self._cohort = cohort
        self._rows: list[ClientRows] = []
        self._exchange = 0
        self._open: OpenBatch | None = None

    def forward(
        self, rows: Sequence[ClientRows], *, train: bool, exchange: int
    ) -> dict[str, torch.Tensor]:
        """Return the representation of each client whose own is finite; the others are dropped."""
        self._rows, self._exchange = list(rows), exchange
        while self._rows:
            parts = self._engine.forward(self._rows, train=train, exchange=exchange)
            spoilt = (
                [] if _finite(parts) else [p for p in range(len(parts)) if not _finite([parts[p]])]
            )
            if not spoilt:
                self._open = self._engine.set_aside() if train else None
                return {row.client: part for row, part in zip(self._rows, parts, strict=True)}
            self._drop([self._rows[place].client for place in spoilt])
        return {}

    def backward(
        self,
        gradients: Mapping[str, torch.Tensor | None],
        weights: Mapping[str, float],
        noise: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor] | None:
        """Back-propagate; return the gradient at each client's activation where it is wanted.

        Parameters
        ----------
        gradients, weights, noise
            By client; those without a gradient count for nothing.

        Raises
        ------
        ProtocolError
            When no single client can be named.
        """
        assert self._open is not None
        self._engine.take_up(self._open)
        self._open = None
        try:
            return self._backward(gradients, weights, noise)
        except SpoiledError:
            culprits = self._culprits(gradients, weights)
        self._drop(culprits, rows=False)
        # First as if they had not answered, which changes no bit of what the others' rows give;
        # where their rows alone are too much, without these.
        for rows in (self._rows, [row for row in self._rows if row.client not in culprits]):
            if not rows:
                break
            self._rows = list(rows)
            self._engine.forward(self._rows, train=True, exchange=self._exchange)
            left = {c: g for c, g in gradients.items() if c not in culprits}
            try:
                return self._backward(left, weights, noise)
            except SpoiledError:
                continue
        raise ProtocolError(
            "a step overflows whoever is left out; lower train.lr, or mend the model's weights"
        )

    def _backward(
        self,
        gradients: Mapping[str, torch.Tensor | None],
        weights: Mapping[str, float],
        noise: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor] | None:
        clients = [row.client for row in self._rows]
        upstream = self._engine.backward(
            [gradients.get(client) for client in clients],
            [weights.get(client, 0.0) for client in clients],
            [noise.get(client) for client in clients] if noise else (),
        )
        return None if upstream is None else dict(zip(clients, upstream, strict=True))

    def _culprits(
        self, gradients: Mapping[str, torch.Tensor | None], weights: Mapping[str, float]
    ) -> list[str]:
        """Return whose gradient alone is too much, or else whose is the largest."""
        sizes = {}
        for row in self._rows:
            gradient = gradients.get(row.client)
            if gradient is None:
                continue
            self._engine.forward([row], train=True, exchange=self._exchange)
            sizes[row.client] = self._engine.size([gradient], [weights[row.client]])
        limit = MOST_NORM / max(1, len(sizes))
        return [c for c, size in sizes.items() if not size <= limit] or [
            max(sizes, key=sizes.__getitem__)
        ]

    def _drop(self, clients: Sequence[str], *, rows: bool = True) -> None:
        for client in clients:
            self._cohort.drop(client, REASON)
        if rows:
            self._rows = [row for row in self._rows if row.client not in clients]


def _finite(parts: Sequence[torch.Tensor]) -> bool:
    # a sum is finite where all is, up to one that overflows, which is then looked at closely
    return all(bool(part.sum().isfinite()) or bool(part.isfinite().all()) for part in parts)
