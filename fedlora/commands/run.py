"""``fedlora run``: a simulation in its own Flower, followed to its end.

What takes time to import is imported where it is needed: a key that is mistyped is refused
without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora.config import Scenario, scenario_to_toml, with_overrides
from fedlora.errors import FedloraError
from fedlora.import_path import Importing, plugin_folders
from fedlora.launch.temporary import parent_folder, temporary_folder
from fedlora.scenarios import find_scenario
from fedlora.storage import dated_folder

if TYPE_CHECKING:
    from rich.console import Console

    from fedlora.report import RunFolder


def run_simulation(
    name: str | Scenario,
    out: Path | None,
    overrides: Sequence[str],
    *,
    overwrite: bool = False,
    console: Console | None = None,
) -> RunFolder:
    """Run a scenario, print its result, and return its folder.

    Parameters
    ----------
    name
        Name or path of a scenario, or the scenario.
    out
        Run folder; None makes one under ``runs``.
    overrides
        ``section.key=value`` assignments.
    overwrite
        Whether an earlier run in ``out`` is replaced.
    console
        Where progress and result go; None for standard output.

    Raises
    ------
    FedloraError
        When the folder is taken, the scenario cannot be used, or the run failed; what was finished
        stays in the folder.
    """
    given = find_scenario(name) if isinstance(name, str) else name
    scenario = with_overrides(given, overrides)
    with Importing():
        from fedlora.report import RunFolder

    check_beforehand(scenario, console)
    scenario = with_plugins(scenario)
    place = (out or dated_folder(Path("runs") / scenario.name)).resolve()
    folder = RunFolder.create(place, overwrite=overwrite)
    try:
        folder.write_scenario(scenario_to_toml(scenario))
        follow_simulation(folder, scenario, console)
    finally:
        folder.release()
    return folder


def check_beforehand(scenario: Scenario, console: Console | None = None) -> None:
    """Check a scenario as ``check_run`` does and say so meanwhile: large files take seconds.

    Raises
    ------
    FedloraError
        See ``check_run``; when Flower's and Ray's files have no place.
    """
    parent_folder()
    from rich.console import Console

    with (console or Console()).status("checking the scenario, its model and its data"):
        with Importing():
            from fedlora.check import check_run

        check_run(scenario)


def follow_simulation(
    folder: RunFolder, scenario: Scenario, console: Console | None = None
) -> None:
    """Let Flower simulate the run of a folder, follow it to its end, and print its result.

    Where the folder holds a checkpoint, the run goes on from it.

    Parameters
    ----------
    folder
        The run's folder, with the scenario in it.
    scenario
        The same scenario.
    console
        Where progress and result go; None for standard output.

    Raises
    ------
    FedloraError
        When the run failed; what was finished stays in the folder.
    """
    from rich.console import Console

    from fedlora.launch.killed import ended, memory
    from fedlora.launch.simulation import FlowerSimulation, SimulationRequest
    from fedlora.report import ProgressView, print_result
    from fedlora.server.unfinished import going_on

    console = console or Console()
    _tell_places(folder, scenario, console)
    request = SimulationRequest(folder.scenario, folder.path, scenario.federation.clients)
    before, status = memory(), None
    folder.append_event("waiting", text="Flower and Ray start")
    threading.Thread(target=_import_report, name="fedlora-report", daemon=True).start()
    try:
        with FlowerSimulation(request) as simulation:
            with ProgressView(folder, console=console) as view:
                status = view.follow(lambda: simulation.working)
                while status is None and simulation.begins_again():
                    console.print("Ray did not start within its 30 s; it is started again")
                    status = view.follow(lambda: simulation.working)
            told = "" if status else simulation.last_words()
            if status == "finished":
                simulation.dismiss()  # its processes end while the report is drawn
                from fedlora.report.page import write_report

                with console.status("drawing the plots and the page"):
                    write_report(folder)
    except (KeyboardInterrupt, BrokenPipeError, SystemExit) as error:
        if status == "finished":  # it was the report that is left out
            raise
        by_user = isinstance(error, KeyboardInterrupt)
        text = "interrupted by the user" if by_user else "whoever read its output has gone"
        folder.append_event("done", status="interrupted", text=text)
        _keep_partial(folder)
        console.print(going_on(folder), markup=False, highlight=False, soft_wrap=True)
        raise
    if status != "finished":
        reason = view.text
        if not reason and told:
            reason = f"Flower ended the run ({told}); see {simulation.log}"
        if not reason:  # whatever the server raises it writes down
            who = f"the server's process {simulation.simulator or ''}".rstrip()
            reason = f"{ended(who, before)}; {going_on(folder)}"
        try:
            _keep_partial(folder)
        except FedloraError as error:  # which is not why the run ended
            reason = f"{reason}; there is no summary, as {error}"
        raise FedloraError(f"{reason} (log: {folder.log})")
    print_result(folder, console)


def _tell_places(folder: RunFolder, scenario: Scenario, console: Console) -> None:
    """Say what is run, where its results go, and temporary files if not where expected."""
    from rich.markup import escape
    from rich.text import Text

    told = f"through Flower, into {escape(str(folder.path))}"
    console.print(f"fedlora: [bold]{escape(scenario.name)}[/bold] {told}", soft_wrap=True)
    if parent_folder() != temporary_folder():
        moved = f"{temporary_folder()} leaves the sockets of Ray no room"
        console.print(Text(f"{moved}; temporary files are in {parent_folder()}"), soft_wrap=True)


def _import_report() -> None:
    """Import the libraries of plots and page, half a second of one core while the other waits."""
    with contextlib.suppress(Exception):  # what fails is told where the report is written
        importlib.import_module("fedlora.report.page")


def with_plugins(scenario: Scenario) -> Scenario:
    """Return the scenario with the folder in which its plug-ins were found, for a later resume."""
    folders = plugin_folders()
    if scenario.python_path or not folders:
        return scenario
    return dataclasses.replace(scenario, python_path=folders[0])


def _keep_partial(folder: RunFolder) -> None:
    """Write summary and report of the rounds that were finished, if any."""
    from fedlora.report.page import write_report
    from fedlora.server.unfinished import summarise_rounds

    if folder.read_metrics() and folder.read_summary() is None:
        summarise_rounds(folder)
        write_report(folder)
