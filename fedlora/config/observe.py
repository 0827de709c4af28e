"""The scenario's section on who may look on while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedlora.config.ranges import check_ranges, within
from fedlora.errors import FedloraError, shown


@dataclass(frozen=True)
class ObserveConfig:
    """What the server shows of a run beside its run folder.

    Attributes
    ----------
    status_every_s
        How often, in seconds, the server replaces ``status.json``, which ``fedlora top`` shows.
    json_log
        Whether the log is also written as JSON, one object a line, to ``log.jsonl``.
    tensorboard
        Whether losses, metrics and the air are written to ``tensorboard/`` in the run folder (extra
        ``tensorboard``).
    mlflow, mlflow_uri
        Whether the same curves are logged with MLflow (extra ``mlflow``), and at which tracking
        server; empty keeps them in ``mlflow/`` in the run folder.
    wandb, wandb_mode
        Whether the same curves are logged with Weights & Biases (extra ``wandb``): ``offline``
        keeps them in ``wandb/`` in the run folder, ``online`` sends them.
    prometheus_port, prometheus_host
        Port and address at which Prometheus may fetch metrics (extra ``prometheus``); port 0: none.
        Whoever reaches the address can read them.
    """

    status_every_s: float = within(1.0, 0.001, 1e7)
    json_log: bool = False
    tensorboard: bool = False
    mlflow: bool = False
    mlflow_uri: str = ""
    wandb: bool = False
    wandb_mode: Literal["offline", "online"] = "offline"
    prometheus_port: int = within(0, 1, 65535, zero="none")
    prometheus_host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        check_ranges(self, "observe.")
        for switch, off, key, usual in (
            ("mlflow", "false", "mlflow_uri", ""),
            ("wandb", "false", "wandb_mode", "offline"),
            ("prometheus_port", "0", "prometheus_host", "127.0.0.1"),
        ):
            if (value := getattr(self, key)) != usual and not getattr(self, switch):
                raise FedloraError(
                    f"observe.{key} is {shown(value)}, and observe.{switch} is {off}, so that it "
                    f"changes nothing; set observe.{switch}, or leave observe.{key} out"
                )
