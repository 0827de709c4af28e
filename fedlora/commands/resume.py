"""``fedlora resume``: a simulation that stopped goes on from its last finished round."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fedlora.commands.run import check_beforehand, follow_simulation
from fedlora.server.checkpoint import open_run


def resume_simulation(path: Path, console: Console | None = None) -> None:
    """Go on with a run and print its result.

    Parameters
    ----------
    path
        The run's folder.
    console
        Where progress and result go; None for standard output.

    Raises
    ------
    FedloraError
        When there is nothing to go on from, or the run failed again.
    """
    scenario, folder = open_run(path.resolve(), check_beforehand)
    try:
        folder.summary.unlink(missing_ok=True)  # of the part that was finished
        follow_simulation(folder, scenario, console)
    finally:
        folder.release()
