"""The curves of a run by optimiser step, for whatever keeps curves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from fedlora.checks import finite
from fedlora.observe.observer import Observer, RunState
from fedlora.report import RoundRecord


class Curves(Observer):
    """Turns events and rounds into named figures at a step."""

    @abstractmethod
    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Keep figures of a step; every one is a finite number."""

    def flush(self) -> None:
        """Make sure that a round that has ended can be seen."""

    def on_event(self, state: RunState, event: Mapping[str, Any]) -> None:
        """Write the loss of a step, and the metric of the baseline."""
        phase = state.phase
        if phase is None or event["event"] not in ("step", "round"):
            return
        if event["event"] == "step":
            self._figures(phase.step, {f"{phase.name}/step_loss": event.get("loss")})
        elif phase.name != "train":
            self._figures(phase.step, {f"{phase.name}/held_out_metric": event.get("metric")})

    def on_round(self, state: RunState, record: RoundRecord) -> None:
        """Write the figures of a round and of each client in it."""
        step = int(record.get("step", state.rounds))
        name = record.get("metric_name") or "metric"
        figures: dict[str, Any] = {
            f"train/held_out_{more}": value for more, value in (record.get("metrics") or {}).items()
        }
        figures |= {
            "train/held_out_loss": record.get("loss"),
            f"train/held_out_{name}": record.get("metric"),
            "ranks/mean": record.get("mean_rank"),
            "air/seconds": record.get("air_seconds"),
            "air/late_deliveries": record.get("late_deliveries"),
            "privacy/epsilon": state.epsilon,
        }
        for way, kinds in (record.get("bits") or {}).items():
            figures[f"air/bits_{way}"] = sum(kinds.values())
        for client, own in (record.get("clients") or {}).items():
            for key in ("metric", "mean_rank", "rate_bps"):
                figures[f"client_{client}/{key}"] = own.get(key)
        self._figures(step, figures)
        self.flush()

    def _figures(self, step: int, values: Mapping[str, Any]) -> None:
        found = {name: finite(value) for name, value in values.items()}
        kept = {name: value for name, value in found.items() if value is not None}
        if kept:
            self.write(kept, step)
