"""``fedlora audit``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedlora.config import load_scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from fedlora.storage import check_new_file
from simulations.options import OverwriteOption, SetOption, looking, require_plain_ends

if TYPE_CHECKING:
    from fedlora.report import RunFolder


def audit(
    target: Annotated[
        str, typer.Argument(help="A run folder, a shipped scenario, or the path of a TOML file.")
    ] = "quickstart-private",
    json_: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Where the figures go, with plots beside them; a run keeps its own copy."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Training steps that are attacked.")] = 20,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer levels and weaker attacks.")
    ] = False,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
    device: Annotated[
        bool,
        typer.Option(
            "--device",
            help="Attack this machine's device code instead: pairs of devices that differ in one "
            "record, under one hostile server.",
        ),
    ] = False,
    messages: Annotated[
        int, typer.Option(min=1, help="With --device: requests that the devices answer.")
    ] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="With --device: of everything drawn.")] = 0,
) -> None:
    """Attack what a scenario's server receives, with and without its noise.

    The scenario is run in this process for some steps, with the noise of the whole run. For a run
    folder the adapter that the run left is attacked too, and the findings are added to its report.
    Exits with 1 when the noise is weaker than the accountant says.

    With --device no scenario is run: a server that sends arbitrary scenarios, fields and tensors
    over several sessions, crashes and restarts talks to pairs of devices that differ in one record.
    Whatever leaves before a charge has to be the same, byte by byte; exits with 1 where it is not.
    """
    if device:
        from simulations.audit.device.command import audit_devices

        check_new_file(json_, "--json", overwrite=overwrite)
        raise typer.Exit(0 if audit_devices(messages, seed, json_) else 1)
    folder = _run_folder(target)
    scenario = load_scenario(folder.scenario) if folder else find_scenario(target)
    scenario = with_overrides(scenario, set_ or [])
    with looking():
        from fedlora.check import check_plugins
        from fedlora.report import seconds_text
        from fedlora.tasks import require_texts

        check_plugins(scenario)
        require_texts(scenario.task.kind, "fedlora audit")
        require_plain_ends(scenario, "fedlora audit")
        _check_free(json_, folder, overwrite=overwrite)
        from simulations.audit.audit import audit_scenario
        from simulations.audit.effort import Effort
        from simulations.audit.stages import Stages

    effort = Effort.quick(min(steps, 8)) if quick else Effort(steps)
    if quick:
        import torch

        torch.set_num_threads(1)  # more of them mostly wait for each other on what is so small
    Console(stderr=True).print(
        f"about {seconds_text(effort.quickstart_s)} of processor time for the quickstart's model "
        "of 0.8 M parameters, more for larger ones" + ("" if quick else "; --quick does less"),
        highlight=False,
    )
    with Stages(Console(stderr=True)) as stages:
        result = audit_scenario(scenario, effort, folder, stages)
    console = Console()
    console.print(_table(result))
    console.print(
        "AUC with its 95% interval, 0.5 is a coin; others are fractions that are right. The "
        "epsilon of the mechanism is proved at 99.9% confidence, that of canaries at 95%.",
        highlight=False,
    )
    for sentence in result["findings"]:
        console.print(sentence, highlight=False)
    for place in _write(result, folder, json_):
        console.print(place, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if result["passed"] else 1)


def _run_folder(target: str) -> RunFolder | None:
    """Return the run folder that is meant, or None where a scenario is.

    Raises
    ------
    FedloraError
        When the folder holds no run, or one without an adapter.
    """
    from fedlora.lora.export import Adapter
    from fedlora.report import RunFolder

    path = Path(target).expanduser()
    if not path.is_dir():
        return None
    folder = RunFolder(path)
    if not folder.scenario.is_file():
        raise FedloraError(
            f"{path} holds no scenario.toml; give the folder of a run, or a scenario by its name"
        )
    if not folder.adapter.is_dir():
        raise FedloraError(
            f"{path} has no adapter, so its run has not ended; end it with fedlora resume {path}, "
            "or audit its scenario"
        )
    Adapter.load(folder.adapter)
    return folder


def _check_free(json_: Path | None, folder: RunFolder | None, *, overwrite: bool) -> None:
    """Refuse to replace figures and plots of an earlier audit, before anything is computed."""
    if folder is not None and folder.audit.exists() and not overwrite:
        raise FedloraError(
            f"{folder.path} holds the figures of an earlier audit, {folder.audit.name}; replace "
            "them with --overwrite"
        )
    from simulations.audit.plot import places

    plots = places(json_.parent, json_.stem) if json_ is not None else ()
    check_new_file(json_, "--json", overwrite=overwrite, beside=plots)


def _write(result: dict[str, Any], folder: RunFolder | None, json_: Path | None) -> list[str]:
    """Write figures and plots, and a run's report; return where they are."""
    from fedlora.report.page import write_report
    from fedlora.storage import replace_file
    from simulations.audit.plot import draw_all

    text = (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()
    places = []
    if json_ is not None:
        replace_file(json_, text)
        plots = draw_all(result, json_.parent, json_.stem)
        places += [f"Figures: {json_}", *(f"Plot: {path}" for path in plots)]
    if folder is not None:
        replace_file(folder.audit, text)
        draw_all(result, folder.plots)
        places.append(f"Report: {write_report(folder)}")
    return places


def _table(result: dict[str, Any]) -> Table:
    from fedlora.report import seconds_text
    from simulations.audit.findings import HEADER

    title = f"audit of {result['scenario']}, {seconds_text(result['seconds'])}"
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="right" if index else "left")
    for row in result["rows"]:
        table.add_row(*row)
    return table
