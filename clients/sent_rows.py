"""What the server keeps of a client's smashed data, so that it is not sent in every epoch again."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedlora.errors import ProtocolError

_BITS = 62


class SentRows:
    """Identifiers of samples, and which of them the server holds the activation of.

    An identifier is drawn when a sample is sent for the first time: it says nothing of the sample
    but that it is the same one again, which equal activations would say as well.
    """

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._kept: set[int] = set()
        self._last: list[int] = []

    def note(self, kept: object) -> None:
        """Take in what a request says of the last activation that was sent.

        Parameters
        ----------
        kept
            How many of its new rows, from the first, the server keeps.

        Raises
        ------
        ProtocolError
            When it is no such number.
        """
        if not isinstance(kept, int) or isinstance(kept, bool) or not 0 <= kept <= len(self._last):
            raise ProtocolError(
                f"the server keeps {kept!r:.40} rows of {len(self._last)} that it was sent"
            )
        self._kept.update(self._last[:kept])
        self._last = []

    def forget(self) -> None:
        """Take it that the server keeps nothing, as when a phase of a run begins."""
        self._kept.clear()
        self._last = []

    def send(self, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return identifiers of samples, int64, and 1 for each that has to go with its row, uint8.

        Parameters
        ----------
        numbers
            Their numbers in the client's data.
        """
        fresh = [number not in self._kept for number in numbers]
        self._last = [number for number, new in zip(numbers, fresh, strict=True) if new]
        ids = [self._identifier(number) for number in numbers]
        return torch.tensor(ids, dtype=torch.int64), torch.tensor(fresh, dtype=torch.uint8)

    def again(self, ids: torch.Tensor | None) -> list[int]:
        """Return the samples that the server has lost.

        Raises
        ------
        ProtocolError
            When these are no identifiers of samples that were sent, each once.
        """
        if ids is None or ids.dtype != torch.int64 or ids.dim() != 1 or not len(ids):
            raise ProtocolError("rows are asked for again by their identifiers, an int64 vector")
        if len(torch.unique(ids)) < len(ids):  # or one frame could ask for more than memory holds
            raise ProtocolError("a row is asked for again twice in one request")
        numbers = [self._numbers.get(own) for own in ids.tolist()]
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            raise ProtocolError("a row is asked for again that was never sent")
        self._kept.difference_update(known)
        return known

    def state_dict(self) -> dict[str, Any]:
        """Return it for the client's own disk: the server's checkpoint names rows by it."""
        numbers = list(self._ids)
        kept = [number in self._kept for number in numbers]
        return {
            "numbers": torch.tensor(numbers, dtype=torch.int64),
            "ids": torch.tensor([self._ids[number] for number in numbers], dtype=torch.int64),
            "kept": torch.tensor(kept, dtype=torch.uint8),
            "last": torch.tensor(self._last, dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        numbers, ids = state["numbers"].tolist(), state["ids"].tolist()
        self._ids = dict(zip(numbers, ids, strict=True))
        self._numbers = dict(zip(ids, numbers, strict=True))
        self._kept = {n for n, own in zip(numbers, state["kept"].tolist(), strict=True) if own}
        self._last = state["last"].tolist()

    def _identifier(self, number: int) -> int:
        found = self._ids.get(number)
        if found is None:
            found = secrets.randbits(_BITS)
            self._ids[number] = found
            self._numbers[found] = number
        return found
