"""The check that every section of a scenario uses."""

from __future__ import annotations

from fedlora.errors import FedloraError


def require(condition: bool, message: str) -> None:
    """Raise ``FedloraError(message)`` unless the condition holds."""
    if not condition:
        raise FedloraError(message)
