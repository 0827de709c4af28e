"""Scenarios, studies and benchmarks; ``simulations.federate`` runs a scenario in this process."""

from importlib import import_module
from typing import Any

__all__ = ["federate"]


def __getattr__(name: str) -> Any:
    """Import ``federate`` when it is first used: commands need none of it."""
    if name in __all__:
        return getattr(import_module("simulations.in_process"), name)
    raise AttributeError(f"module 'simulations' has no attribute {name!r}")
