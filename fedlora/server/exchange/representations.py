"""Representations as they go down: whole, or as what is left of what the client had last."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from fedlora.config import Scenario
from fedlora.link import KeptLevels, RememberingCodec, create_codec, pack, pack_beside
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.uploads import Activation


class Representations:
    """Writes representations, and keeps the levels of those that clients keep, too.

    A client finds what it was sent itself alone; it is forgotten when it leaves. Which of it the
    client still has it tells with each activation, so nothing here has to be right about that.

    Parameters
    ----------
    scenario
        Its codec, and how much is kept.
    cohort
        Who is connected.
    pooled
        Whether there is one row for each sample, rather than one for each token.
    """

    def __init__(self, scenario: Scenario, cohort: Cohort, *, pooled: bool) -> None:
        self._pooled = pooled
        self._codec = create_codec(**scenario.link.codec("representation"))
        self._cohort = cohort
        self._limit = scenario.link.residual_bytes(max(1, scenario.federation.clients))
        self._own: dict[str, tuple[object, KeptLevels]] = {}

    def pack(self, client: str, batch: Activation, part: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors of a request that carry a client its part.

        Parameters
        ----------
        client
            Who it is for.
        batch
            What it is of.
        part
            Shape (rows, width): of each sample one row, or one for each token that comes down.
        """
        remembers = 0
        if isinstance(self._codec, RememberingCodec) and self._limit and batch.ids is not None:
            remembers = self._codec.remembers(part.shape[1])
        if not remembers:
            return pack("representation", part, self._codec)
        assert isinstance(self._codec, RememberingCodec) and batch.ids is not None
        kept = self._of(client)
        sizes = [1] * len(batch.ids) if self._pooled else batch.answered
        told = torch.zeros(len(sizes), dtype=torch.int32) if batch.held is None else batch.held
        known = kept.find(batch.ids, sizes, remembers, told)
        tensors, levels = pack_beside("representation", part, self._codec, known)
        kept.keep(batch.ids, sizes, levels)
        return tensors

    def retain(self, clients: Collection[str]) -> None:
        """Forget all other clients."""
        for gone in self._own.keys() - set(clients):
            del self._own[gone]

    def state_dict(self) -> dict[str, Any]:
        """Return it for a checkpoint."""
        return {client: kept.state_dict() for client, (_, kept) in self._own.items()}

    def load_state_dict(self, state: Mapping[str, Any], clients: Collection[str]) -> None:
        """Take up ``state_dict`` for clients that go on from the same round."""
        for client in clients:
            if client in state and client in self._cohort:
                self._of(client).load_state_dict(state[client])

    def _of(self, client: str) -> KeptLevels:
        """Return what is kept of the session of a client."""
        session = self._cohort[client]
        if client not in self._own or self._own[client][0] is not session:
            self._own[client] = session, KeptLevels(self._limit)
        return self._own[client][1]
