"""Who looks on while a run goes: TensorBoard, Prometheus, or whoever is given the recorder."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

from fedlora.observe.status import RunState
from fedlora.report import RoundRecord


class Observer(ABC):  # noqa: B024 (both may be left as they are)
    """Looks on; what it does must not take long."""

    def on_event(self, state: RunState, event: Mapping[str, Any]) -> None:  # noqa: B027
        """Take note of an event, which the state holds already."""

    def on_round(self, state: RunState, record: RoundRecord) -> None:  # noqa: B027
        """Take note of a finished round, which the state holds already."""
