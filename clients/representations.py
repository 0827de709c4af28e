"""Representations as they come down: whole, or as what is left of what came of them last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedlora.config import Scenario
from fedlora.link import Codec, KeptLevels, RememberingCodec, unpack, unpack_beside


class Representations:
    """Reads representations, and keeps the levels of those of samples to train on.

    Parameters
    ----------
    scenario
        How much is kept.
    codec
        Reads them.
    """

    def __init__(self, scenario: Scenario, codec: Codec) -> None:
        self._codec = codec
        limit = scenario.link.residual_bytes(max(1, scenario.federation.clients))
        self._remembers = isinstance(codec, RememberingCodec) and limit > 0
        self._kept = KeptLevels(limit)

    def held(self, numbers: Sequence[int]) -> torch.Tensor | None:
        """Return digests of what is here of samples, int32; None where nothing is.

        All of it was sent by the server, so it learns nothing but that it has arrived.
        """
        told = self._kept.digests(numbers)
        return told if bool(told.any()) else None

    def read(
        self,
        tensors: Mapping[str, torch.Tensor],
        width: int,
        sizes: Sequence[int],
        numbers: Sequence[int] | None,
    ) -> torch.Tensor:
        """Return a representation, shape (rows, width).

        Parameters
        ----------
        tensors
            Of a request.
        width
            Of a row.
        sizes
            Rows of each sample.
        numbers
            The samples, where they are kept; None where they are not.

        Raises
        ------
        ProtocolError
            When it is not that of these samples.
        """
        codec, shape = self._codec, (sum(sizes), width)
        if numbers is None or not (self._remembers and isinstance(codec, RememberingCodec)):
            return unpack(tensors, "representation", codec, shape)
        levels = codec.remembers(width)
        if not levels:
            return unpack(tensors, "representation", codec, shape)
        known = self._kept.find(numbers, sizes, levels, None)
        z, sent = unpack_beside(tensors, "representation", codec, shape, known)
        self._kept.keep(numbers, sizes, sent)
        return z

    def forget(self) -> None:
        """Forget all of them."""
        self._kept.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept, for the client's own disk."""
        return self._kept.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self._kept.load_state_dict(state)
