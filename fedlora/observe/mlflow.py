"""Curves of a run for MLflow: in the run's folder, or at a tracking server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedlora.errors import FedloraError
from fedlora.observe.curves import Curves
from fedlora.observe.extras import missing

EXPERIMENT = "fedlora"


class MLflow(Curves):
    """Logs metrics.

    Parameters
    ----------
    client
        A ``mlflow.MlflowClient``.
    run
        Its number of the run.
    """

    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """See ``Curves``."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)


@contextmanager
def mlflow(folder: Path, uri: str, scenario: str) -> Iterator[MLflow]:
    """Open a run.

    Parameters
    ----------
    folder
        The run's folder, whose name it gets.
    uri
        A tracking server; empty keeps everything in ``mlflow/`` in the folder.
    scenario
        Text that is kept with it as ``scenario.toml``.

    Raises
    ------
    FedloraError
        When MLflow is not installed, or the server cannot be used.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise missing("mlflow") from None
    place = uri or (folder / "mlflow").resolve().as_uri()
    if not uri:  # files need no database, and MLflow wants to be told so
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        client = MlflowClient(tracking_uri=place)
        known = client.get_experiment_by_name(EXPERIMENT)
        number = known.experiment_id if known else client.create_experiment(EXPERIMENT)
        run = client.create_run(number, run_name=folder.name).info.run_id
        client.log_text(run, scenario, "scenario.toml")
    except (MlflowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FedloraError(
            f"observe.mlflow_uri is {place!r}, which cannot be used ({reason}); mend it, or leave "
            "it empty to keep curves in the run's folder"
        ) from None
    try:
        yield MLflow(client, run)
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run)
