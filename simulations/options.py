"""What the commands of benchmarks and studies have in common: the scenario, and their options."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.commands.options import OverwriteOption
from fedlora.errors import FedloraError

if TYPE_CHECKING:
    from fedlora.config import Scenario

__all__ = [
    "OverwriteOption",
    "SetOption",
    "WorkersOption",
    "looking",
    "open_scenario",
    "read_numbers",
    "require_held_out",
    "require_losses",
    "require_plain_ends",
]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a scenario key."),
]

WorkersOption = Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")]


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
    from fedlora.config import with_overrides
    from fedlora.scenarios import find_scenario

    scenario = with_overrides(find_scenario(name), overrides or [])
    with looking():
        from fedlora.check import check_scenario
        from fedlora.registry import use_python_path
        from fedlora.tasks import require_texts

        if texts:
            use_python_path(scenario.python_path)
            require_texts(scenario.task.kind, texts)
        if check:
            check_scenario(scenario)
    return scenario


def looking() -> AbstractContextManager[object]:
    """Say on a terminal that a scenario is looked at, as imports and large files take seconds."""
    from rich.console import Console

    return Console(stderr=True).status("checking the scenario, its model and its data")


def read_numbers(
    option: str,
    text: str,
    what: str = "positive numbers",
    example: str = "1,2,4",
    fits: Callable[[float], bool] = lambda value: 0 < value < 1e9,
) -> list[float]:
    """Read a list of numbers, each once.

    Parameters
    ----------
    option, text
        By which it was given, and what was given.
    what, example
        Which numbers may be listed, and such a list.
    fits
        Tells whether a number may be listed; it is never asked about nan.

    Raises
    ------
    FedloraError
        When one is no number, does not fit, or is listed twice.
    """
    found: list[float] = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if math.isnan(value) or not fits(value) or value in found:
            raise FedloraError(f"{option} is {text!r}; list different {what}, such as {example}")
        found.append(value)
    return found


def require_plain_ends(scenario: Scenario, who: str) -> None:
    """Refuse a scenario whose shared heads travel by a codec, where a study reads them.

    Parameters
    ----------
    scenario
        What is studied.
    who
        Reads them, as the beginning of a sentence.
    """
    from fedlora.config import ENDS

    for end in ENDS:
        if (name := scenario.link.codec(end)["name"]) != "fp32":
            raise FedloraError(
                f"link.{end} is {name}, and {who} reads heads in fp32; set it to fp32"
            )


def require_held_out(scenario: Scenario, what: str) -> None:
    """Refuse a scenario of which nothing is held out, before anything is computed.

    Parameters
    ----------
    scenario
        What is studied.
    what
        Rests on it, as the end of a sentence.
    """
    if not (scenario.data.test or scenario.data.holdout):
        raise FedloraError(f"data.holdout is 0 and data.test is empty, and {what}; set one of them")


def require_losses(scenario: Scenario, what: str) -> None:
    """Refuse a scenario whose clients tell no held-out loss; see ``require_held_out``."""
    require_held_out(scenario, what)
    if scenario.privacy.enabled and not scenario.evaluate.report:
        raise FedloraError(
            f"evaluate.report is false under privacy, so that no client tells its held-out loss, "
            f"and {what}; set evaluate.report to true"
        )
