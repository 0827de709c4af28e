"""``fedlora cascade``: where privacy noise goes, and what it does to the loss."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlora.errors import FedloraError
from fedlora.storage import dated_folder, json_line, replace_file
from simulations.options import (
    OverwriteOption,
    SetOption,
    WorkersOption,
    looking,
    open_scenario,
    read_numbers,
    require_held_out,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulations.studies.cascade.energy import Energy


def cascade(
    scenario: Annotated[str, typer.Argument(help="Scenario under privacy.")] = "quickstart-private",
    sigma: Annotated[
        str, typer.Option(help="Noises, separated by commas; `none` leaves the loss out.")
    ] = "0.5,1,2,4",
    draws: Annotated[int, typer.Option(min=2, help="Backward passes of each kind.")] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds before energies are taken.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; a study that is there is gone on with (default: `cascade-TIME`)."
        ),
    ] = None,
    workers: WorkersOption = 0,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Predict the privacy noise in every adapter, measure it, and follow the loss.

    Writes `cascade.json` and `cascade.png`.
    """
    from clients.simulated_data import SimulatedData
    from simulations.studies.cascade.energy import Energy
    from simulations.studies.cascade.plot import draw
    from simulations.studies.cascade.trend import Curve
    from simulations.studies.cascade.trial import Trial, run_trial
    from simulations.studies.kit import StudyFolder, run_missing

    sigmas = [] if sigma == "none" else read_numbers("--sigma", sigma, example="0.5,1,2")
    base = open_scenario(scenario, set_, check=False, texts="fedlora cascade")
    if not base.privacy.enabled:
        raise FedloraError(
            f"scenario {base.name} has no noise; set privacy.epsilon, or name one that has"
        )
    if sigmas:
        require_held_out(base, "the held-out loss is followed; or set --sigma none")
    with looking():
        from fedlora.check import check_scenario

        check_scenario(base)
    trials = [Trial(None), *map(Trial, [0.0, *sigmas] if sigmas else [])]
    folder = StudyFolder(
        out or dated_folder(Path("cascade")),
        "a study of noise",
        ("cascade.json", "cascade.png"),
        base,
        lambda line: line["sigma"],
        settings={"rounds": rounds, "draws": draws},
        overwrite=overwrite,
        marks=("cascade.json",),
    )
    with folder.held():
        run_missing(
            folder.results,
            trials,
            run_trial,
            lambda _: (base, rounds, draws),
            python_path=base.python_path,
            workers=workers,
            title="runs",
        )
    records = [folder.results.records[trial.key] for trial in trials]
    energies = [Energy(**energy) for energy in records[0]["energies"]]
    console = Console()
    _print(console, base.name, energies)
    result = {"energies": records[0]["energies"]}
    if sigmas:
        curves = [Curve(**record["curve"]) for record in records[1:]]
        classes = SimulatedData(base, base.federation.clients).labels
        start = math.log(len(classes))  # the head starts near 0, so that all classes are alike
        draw(curves, start, folder.path / "cascade.png", base.name)
        result["curves"] = [
            asdict(curve) | {"predicted": curve.predicted(curves[0], start)} for curve in curves
        ]
    replace_file(folder.path / "cascade.json", json_line(result, indent=2))
    console.print(f"figures: {folder.path}", markup=False, highlight=False, soft_wrap=True)


def _print(console: Console, name: str, energies: Sequence[Energy]) -> None:
    table = Table(title=f"{name}: noise energy in the gradients of A and B")
    for column in ("layer", "projection", "predicted", "measured", "difference"):
        table.add_column(column, justify="left" if column == "projection" else "right")
    for e in energies:
        shown = (f"{e.predicted:.4g}", f"{e.measured:.4g}", f"{100 * e.error:+.1f}%")
        table.add_row(str(e.layer), e.name, *shown)
    console.print(table)
    console.print(f"largest difference {100 * max(abs(e.error) for e in energies):.1f}%")
