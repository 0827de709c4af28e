"""Whether this process is of Flower's simulation: its own fact, never one of a message."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_SIMULATION_KEYS = {"partition-id", "num-partitions"}


def in_simulation(node_config: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Tell whether this is an actor of Flower's simulation engine, with no owner's key.

    Flower runs the clients of a simulation in Ray's actors and gives them two keys of its own; a
    device's ClientApp is a plain process, whose node configuration is its owner's.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or set(node_config) - _SIMULATION_KEYS:
        return False
    return ray.get_runtime_context().get_actor_id() is not None
