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
        codec, ids = self._codec, batch.ids
        kept = self._limit > 0 and ids is not None and client in self._cohort
        if not (kept and isinstance(codec, RememberingCodec)) or ids is None:
            return pack("representation", part, codec)
        levels = codec.remembers(part.shape[1])
        if not levels:
            return pack("representation", part, codec)
        own, sizes = self._of(client), [1] * len(ids) if self._pooled else batch.answered
        held = torch.zeros(len(ids), dtype=torch.int32) if batch.held is None else batch.held
        known = own.find(ids, sizes, levels, held)
        tensors, sent = pack_beside("representation", part, codec, known)
        own.keep(ids, sizes, sent)
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
