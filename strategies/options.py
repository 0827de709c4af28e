"""Options that several strategies have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedlora.checks import number, whole
from fedlora.errors import shown
from fedlora.ranks import FedloraError

_KEY = "ranks.options."


def check_seed(seed: int) -> int:
    """Return a seed that a generator takes.

    Raises
    ------
    FedloraError
        When it is none.
    """
    return whole(_KEY + "seed", seed, 0, 2**63 - 1)


def check_numbers(name: str, values: Sequence[float], low: float, high: float) -> tuple[float, ...]:
    """Return the numbers of an option that lists several.

    Raises
    ------
    FedloraError
        When it is no list, an empty one, or a number is out of range.
    """
    if not isinstance(values, list | tuple) or not values:
        raise FedloraError(
            f"{_KEY}{name} is {shown(values)}; list numbers from {low:g} to {high:g}"
        )
    return tuple(number(f"an entry of {_KEY}{name}", value, low, high) for value in values)


def check_policy(path: str) -> Path | None:
    """Return the file of a policy, or None where none is named.

    Raises
    ------
    FedloraError
        When it is no path.
    """
    if not isinstance(path, str) or "\0" in path:
        raise FedloraError(f"{_KEY}policy is {shown(path)}; name a file")
    return Path(path).expanduser() if path else None
