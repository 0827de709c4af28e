"""Curves of a run for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedlora.checks import finite
from fedlora.errors import FedloraError
from fedlora.observe.observer import Observer
from fedlora.observe.status import RunState
from fedlora.report import RoundRecord


class TensorBoard(Observer):
    """Writes scalars by optimiser step.

    Parameters
    ----------
    writer
        A ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def on_event(self, state: RunState, event: Mapping[str, Any]) -> None:
        """Write the loss of a step, and the metric of the baseline."""
        phase = state.phase
        if phase is None or event["event"] not in ("step", "round"):
            return
        kinds = {"step": {"step_loss": "loss"}, "round": {"held_out_metric": "metric"}}
        if event["event"] == "step":
            self._scalars(f"{phase.name}/", phase.step, event, kinds["step"])
        elif phase.name != "train":
            self._scalars(f"{phase.name}/", phase.step, event, kinds["round"])

    def on_round(self, state: RunState, record: RoundRecord) -> None:
        """Write the figures of a round and of each client in it."""
        step = int(record.get("step", state.rounds))
        own = {
            "train/held_out_loss": "loss",
            f"train/held_out_{record.get('metric_name') or 'metric'}": "metric",
            "ranks/mean": "mean_rank",
            "air/seconds": "air_seconds",
            "air/late_deliveries": "late_deliveries",
        }
        self._scalars("", step, record, own)
        for way, kinds in (record.get("bits") or {}).items():
            self._scalars("", step, {"bits": sum(kinds.values())}, {f"air/bits_{way}": "bits"})
        self._scalars("", step, {"epsilon": state.epsilon}, {"privacy/epsilon": "epsilon"})
        for client, figures in (record.get("clients") or {}).items():
            keys = {f"client_{client}/{key}": key for key in ("metric", "mean_rank", "rate_bps")}
            self._scalars("", step, figures, keys)
        self._writer.flush()

    def _scalars(
        self, prefix: str, step: int, values: Mapping[str, Any], names: Mapping[str, str]
    ) -> None:
        for name, key in names.items():
            value = finite(values.get(key))
            if value is not None:
                self._writer.add_scalar(prefix + name, value, step)


@contextmanager
def tensorboard(folder: Path) -> Iterator[TensorBoard]:
    """Open a writer; raises ``FedloraError`` when TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise FedloraError(
            "observe.tensorboard is true and TensorBoard is not installed; install "
            "fedlora[tensorboard], or set it to false"
        ) from None
    writer = SummaryWriter(str(folder))
    try:
        yield TensorBoard(writer)
    finally:
        writer.close()
