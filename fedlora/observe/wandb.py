"""Curves of a run for Weights & Biases: in the run's folder, sent nowhere unless that is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedlora.errors import FedloraError
from fedlora.observe.curves import Curves
from fedlora.observe.extras import missing

PROJECT = "fedlora"


class WandB(Curves):
    """Logs figures.

    Parameters
    ----------
    run
        What ``wandb.init`` returned.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """See ``Curves``; a baseline's steps come before the run's, so the step is a figure too."""
        self._run.log({**figures, "optimiser_step": step})


@contextmanager
def wandb(folder: Path, mode: str, scenario: str) -> Iterator[WandB]:
    """Open a run.

    Parameters
    ----------
    folder
        The run's folder, whose name it gets.
    mode
        ``offline`` keeps everything in ``wandb/`` in the folder; ``online`` sends it.
    scenario
        Text that is kept with it.

    Raises
    ------
    FedloraError
        When the library is not installed, or the server cannot be used.
    """
    try:
        import wandb as library
    except ImportError:
        raise missing("wandb") from None
    quiet = library.Settings(
        console="off", silent=True, disable_git=True, x_disable_meta=True, x_disable_stats=True
    )
    try:
        run = library.init(
            project=PROJECT,
            name=folder.name,
            dir=str(folder),
            mode=mode,
            config={"scenario": scenario},
            settings=quiet,
        )
    except (library.errors.Error, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FedloraError(
            f"observe.wandb_mode is {mode!r}, and no run can be opened ({reason}); log in, or set "
            "it to offline"
        ) from None
    run.define_metric("*", step_metric="optimiser_step")
    code = 1
    try:
        yield WandB(run)
        code = 0
    finally:
        run.finish(exit_code=code)
