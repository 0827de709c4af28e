"""fedlora from Python: ``import fedlora; result = fedlora.run("quickstart")``.

The names here are those of the package itself, which imports them when they are first used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fedlora.commands.resume import resume_simulation
from fedlora.commands.run import run_simulation
from fedlora.config import Scenario, assignment, with_overrides
from fedlora.report import RunResult
from fedlora.scenarios import find_scenario

Overrides = Mapping[str, object] | Sequence[str]
"""Keys of a scenario with their values, or ``section.key=value`` texts as ``--set`` takes them."""


def scenario(name: str | Path, overrides: Overrides = ()) -> Scenario:
    """Return a scenario with some of its keys changed.

    Parameters
    ----------
    name
        Name of a shipped scenario, path of a TOML file, or TOML text.
    overrides
        Such as ``{"train.rounds": 3}``.

    Raises
    ------
    FedloraError
        When there is no such scenario or key, or a value cannot be used.
    """
    return with_overrides(find_scenario(str(name)), assignments(overrides))


def run(
    scenario: str | Path | Scenario = "quickstart",
    *,
    out: str | Path | None = None,
    overrides: Overrides = (),
    overwrite: bool = False,
    progress: bool = True,
) -> RunResult:
    """Run a scenario through Flower's simulation, as ``fedlora run`` does, and return its result.

    Flower, Ray, the server and its clients are processes of their own, which end with this call.

    Parameters
    ----------
    scenario
        Name of a shipped one, path of a TOML file, TOML text, or a ``Scenario``.
    out
        Run folder; None makes one under ``runs``.
    overrides
        Keys to change, such as ``{"train.rounds": 3}``.
    overwrite
        Whether an earlier run in ``out`` is replaced.
    progress
        Whether progress and result table are printed.

    Raises
    ------
    FedloraError
        When the folder is taken, the scenario cannot be used, or the run failed; what was finished
        stays in the folder.
    """
    given = scenario if isinstance(scenario, Scenario) else str(scenario)
    place = None if out is None else Path(out).expanduser()
    console = Console(quiet=not progress)
    folder = run_simulation(
        given, place, assignments(overrides), overwrite=overwrite, console=console
    )
    return RunResult(folder.path)


def resume(path: str | Path, *, progress: bool = True) -> RunResult:
    """Go on with a run that stopped, from its last finished round, and return its result.

    Parameters
    ----------
    path
        The run's folder.
    progress
        Whether progress and result table are printed.

    Raises
    ------
    FedloraError
        When there is nothing to go on from, or the run failed again.
    """
    resume_simulation(Path(path).expanduser(), Console(quiet=not progress))
    return RunResult(path)


def open_run(path: str | Path) -> RunResult:
    """Return what came of an earlier run; raises ``FedloraError`` where there is none."""
    return RunResult(path)


def assignments(overrides: Overrides) -> list[str]:
    """Return overrides as ``section.key=value`` texts."""
    if isinstance(overrides, Mapping):
        return [assignment(key, value) for key, value in overrides.items()]
    return [overrides] if isinstance(overrides, str) else list(overrides)
