"""Measured figures: each a finite number with its unit, and a target where there is one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes
    ----------
    name
        Dotted: experiment, model, link and so on, and last what was measured.
    value
        Finite.
    unit
        ``tokens/s``, ``s``, ``ms``, ``MiB``, ``ratio``, ...
    at_least, at_most
        Target, where there is one.
    quartile_1, quartile_3
        Spread over the pairs of steps, for a median of ratios.
    """

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    quartile_1: float | None = None
    quartile_3: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"figure {self.name} is {self.value}")

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.at_least is None and self.at_most is None:
            return None
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= self.value <= high

    @property
    def target(self) -> str:
        """The target in words, or nothing."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, without the name and absent targets."""
        return {k: v for k, v in asdict(self).items() if k != "name" and v is not None}

    @classmethod
    def from_dict(cls, name: str, fields: Mapping[str, Any]) -> Figure:
        """Read what ``to_dict`` returned."""
        return cls(name, **fields)
