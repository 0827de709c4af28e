"""Which libraries looking on takes, and the sentence where one is not installed."""

from __future__ import annotations

import importlib.util

from fedlora.config import ObserveConfig
from fedlora.errors import FedloraError

_LIBRARIES = {
    "tensorboard": ("TensorBoard", "tensorboard"),
    "mlflow": ("MLflow", "mlflow"),
    "wandb": ("Weights & Biases", "wandb"),
}
"""Name and module, by extra, which is also the key of ``observe``."""


def missing(extra: str) -> FedloraError:
    """Return the error for a library that is not installed."""
    return FedloraError(
        f"observe.{extra} is true and {_LIBRARIES[extra][0]} is not installed; install "
        f"fedlora[{extra}], or set it to false"
    )


def check_extras(config: ObserveConfig) -> None:
    """Refuse what looks on through a library that is not installed, before anything starts.

    Raises
    ------
    FedloraError
        When one is not.
    """
    for extra, (_, module) in _LIBRARIES.items():
        if getattr(config, extra) and not _installed(module):
            raise missing(extra)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module that was taken away
        return False
