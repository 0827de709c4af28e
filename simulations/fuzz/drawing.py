"""A scenario that is being drawn, key by key."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

BASE: dict[str, Any] = {
    "_model": "quickstart",
    "_rows": 16,
    "_classes": "plain",
    "_format": "csv",
    "_words": 8,
    "task.max_length": 12,
    "partition.min_rows": 1,
    "federation.clients": 2,
    "lora.r_max": 2,
    "train.rounds": 1,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.lr": 0.01,
    "evaluate.baseline": False,
    "compute.threads": 1,
}
"""What every case starts from; keys with an underscore say what its files look like."""


_STYLES = ("plain", "plain", "plain", "private", "private", "any", "any", "any", "wild", "wild")
_ODD = 0.1


class Drawing:
    """A case in the making.

    Parameters
    ----------
    number
        Everything follows from it.

    Attributes
    ----------
    case
        Values by key.
    style
        ``wild``: odd values and combinations are among the choices, which may well be refused;
        ``plain``: what plain PEFT can be held to; ``private``: noise on what leaves; ``any``.
    """

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        self.case: dict[str, Any] = dict(BASE)
        self.style = self.random.choice(_STYLES)

    @property
    def wild(self) -> bool:
        """Whether odd values are among the choices."""
        return self.style == "wild"

    def __getitem__(self, key: str) -> Any:
        """Return a value that has been drawn, or None."""
        return self.case.get(key)

    def chance(self, probability: float) -> bool:
        """Draw true or false."""
        return self.random.random() < probability

    def set(self, key: str, *choices: Any, wild: Sequence[Any] = ()) -> Any:
        """Draw a key's value from choices, and from the wild ones in a wild case."""
        odd = self.wild and wild and self.chance(_ODD)  # few, or all would end at the first
        value = self.random.choice(list(wild) if odd else choices)
        self.case[key] = value
        return value

    def some(self, probability: float, key: str, *choices: Any, wild: Sequence[Any] = ()) -> None:
        """Draw a key's value with a probability, and leave it as it is otherwise."""
        if self.chance(probability):
            self.set(key, *choices, wild=wild)

    def drop(self, *keys: str) -> None:
        """Leave keys at their defaults."""
        for key in keys:
            self.case.pop(key, None)
