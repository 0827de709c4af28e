"""What the commands of benchmarks and studies have in common: the scenario, and ``--set``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.commands.options import OverwriteOption

if TYPE_CHECKING:
    from fedlora.config import Scenario

__all__ = ["OverwriteOption", "SetOption", "open_scenario"]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a scenario key."),
]


def open_scenario(
    name: str, overrides: Sequence[str] | None, *, check: bool = True, texts: str = ""
) -> Scenario:
    """Return a scenario with its overrides, after it was found to be runnable.

    Parameters
    ----------
    name, overrides
        See ``find_scenario`` and ``with_overrides``.
    check
        Whether to check it; a study that changes it further checks what it runs.
    texts
        Who needs a task of texts, as the beginning of a sentence; empty for any task.

    Raises
    ------
    FedloraError
        When there is no such scenario, or it cannot be run.
    """
    from fedlora.check import check_scenario
    from fedlora.config import with_overrides
    from fedlora.registry import use_python_path
    from fedlora.scenarios import find_scenario
    from fedlora.tasks import require_texts

    scenario = with_overrides(find_scenario(name), overrides or [])
    if texts:
        use_python_path(scenario.python_path)
        require_texts(scenario.task.kind, texts)
    if check:
        check_scenario(scenario)
    return scenario
