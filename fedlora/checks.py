"""Checks of a user's values: each raises one sentence that quotes the value and the mend."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Collection
from numbers import Real
from typing import Any

from fedlora.errors import FedloraError, shown

EPSILON_MAX = 50.0  # exp(50) is no bound on any likelihood ratio that an attacker could reach

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]+(?<!-)(\.(?!-)[A-Za-z0-9_-]+(?<!-))*\.?")
_LONGEST_HOST = 253  # RFC 1035

BANDWIDTH_MIN_HZ, BANDWIDTH_MAX_HZ = 1.0, 1e13
"""No radio link has less or more; within them no reckoning of rates overflows."""


def finite(value: object) -> float | None:
    """Return a finite number, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number from ``low`` to ``high``, both included.

    Raises
    ------
    FedloraError
        When the value is not a number, not finite, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FedloraError(f"{name} is {shown(value)}, a {type(value).__name__}; set a number")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not (math.isfinite(result) and low <= result <= high):
        bounds = _range(low, high)
        raise FedloraError(f"{name} is {shown(value)}; set a finite number {bounds}".rstrip())
    return result


def positive(name: str, value: Any) -> float:
    """Return a finite number above zero.

    Raises
    ------
    FedloraError
        When the value is not one.
    """
    if number(name, value) <= 0:
        raise FedloraError(f"{name} is {shown(value)}; set a finite number above 0")
    return float(value)


def bandwidth(name: str, value: Any) -> float:
    """Return a bandwidth in Hz that a link can have.

    Raises
    ------
    FedloraError
        When the value is not one.
    """
    return number(name, value, BANDWIDTH_MIN_HZ, BANDWIDTH_MAX_HZ)


def check_epsilon(name: str, value: float) -> float:
    """Return an epsilon that promises something.

    Raises
    ------
    FedloraError
        When it is not above 0, or promises nothing.
    """
    if positive(name, value) > EPSILON_MAX:
        raise FedloraError(
            f"{name} is {value:g}, which promises nothing; set at most {EPSILON_MAX:g}"
        )
    return float(value)


def check_delta(name: str, value: float) -> float:
    """Return a probability above 0 and below 1.

    Raises
    ------
    FedloraError
        When the value is not one.
    """
    if not 0 < value < 1:
        raise FedloraError(f"{name} is {shown(value)}; set a probability above 0 and below 1")
    return value


def check_target(
    epsilon: float, delta: float, names: tuple[str, str] = ("epsilon", "delta")
) -> None:
    """Refuse a privacy target that promises nothing, or that nothing can meet.

    Raises
    ------
    FedloraError
        See ``check_epsilon`` and ``check_delta``.
    """
    check_epsilon(names[0], epsilon)
    check_delta(names[1], delta)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number from ``low`` to ``high``, both included.

    Raises
    ------
    FedloraError
        When the value is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FedloraError(f"{name} is {shown(value)}; set a whole number from {low} to {high}")
    return value


def truth(name: str, value: Any) -> bool:
    """Return true or false.

    Raises
    ------
    FedloraError
        When the value is neither.
    """
    if not isinstance(value, bool):
        raise FedloraError(f"{name} is {shown(value)}; set true or false")
    return value


def check_host(name: str, value: str) -> str:
    """Return a host that a socket can be given: a name in ASCII, or an address.

    Raises
    ------
    FedloraError
        When it is none, such as a URL, or with a port.
    """
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        numeric = all(part.isdecimal() for part in value.split("."))
        if numeric or not _HOST_NAME.fullmatch(value) or len(value) > _LONGEST_HOST:
            raise FedloraError(
                f"{name} is {shown(value)}; set a host name in ASCII or an address, without scheme "
                "and port"
            ) from None
    return value


def choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return the value if it is one of the choices.

    Raises
    ------
    FedloraError
        When it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise FedloraError(f"{name} is {shown(value)}; choose one of {', '.join(choices)}")
    return value


def _range(low: float, high: float) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return f"from {low:g} to {high:g}"
    if math.isfinite(low):
        return f"of at least {low:g}"
    return f"of at most {high:g}" if math.isfinite(high) else ""
