"""The range of every number that a scenario can say, written beside the number's default."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from fedlora.errors import FedloraError, shown

T = TypeVar("T")

_KEY = "range"


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number may be.

    Attributes
    ----------
    low, high
        The least and the most, both included.
    zero
        What 0 means beside them; empty where it is no exception.
    """

    low: float
    high: float
    zero: str = ""

    def __contains__(self, value: float) -> bool:
        """Tell whether a number is in the range; NaN never is."""
        return self.low <= value <= self.high or (bool(self.zero) and value == 0)

    def __str__(self) -> str:
        bounds = f"{_written(self.low)} to {_written(self.high)}"
        return f"0 for {self.zero}, or {bounds}" if self.zero else bounds


def within(default: T, low: float, high: float, zero: str = "") -> T:
    """Return a dataclass field for a number, for several of them, or for None, with its range.

    Parameters
    ----------
    default
        The field's default.
    low, high, zero
        See ``Range``.
    """
    return dataclasses.field(default=default, metadata={_KEY: Range(low, high, zero)})


def range_of(field: dataclasses.Field[object]) -> Range | None:
    """Return the range that a field was declared with, or None."""
    return field.metadata.get(_KEY)


def check_ranges(section: object, prefix: str = "") -> None:
    """Refuse a section with a number outside its range.

    Parameters
    ----------
    section
        A dataclass.
    prefix
        What stands before a field's name in the scenario, such as ``train.``.

    Raises
    ------
    FedloraError
        Naming key, value and range.
    """
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        allowed, value = range_of(field), getattr(section, field.name)
        if allowed is None or value is None:
            continue
        several = isinstance(value, tuple)
        for number in value if several else (value,):
            if number not in allowed:
                whose = "an entry of " if several else ""
                raise FedloraError(f"{whose}{prefix}{field.name} is {shown(number)}; set {allowed}")


def _written(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
