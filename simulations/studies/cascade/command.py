"""``fedlora cascade``: where privacy noise goes, and what it does to the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlora.errors import FedloraError
from fedlora.storage.files import json_line, replace_file
from fedlora.storage.outputs import FolderKind, dated_folder
from simulations.options import OverwriteOption, SetOption, open_scenario
from simulations.studies.cascade.energy import Energy, compare

_STUDY = FolderKind("study of noise", ("cascade.json",), ("cascade.json", "cascade.png"))


def cascade(
    scenario: Annotated[str, typer.Argument(help="Scenario under privacy.")] = "quickstart-private",
    sigma: Annotated[str, typer.Option(help="Noises, separated by commas.")] = "0.5,1,2,4",
    draws: Annotated[int, typer.Option(min=2, help="Backward passes of each kind.")] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds before energies are taken.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study (default: `cascade-TIME`).")
    ] = None,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Predict the privacy noise in every adapter, measure it, and follow the loss.

    Writes `cascade.json` and `cascade.png`. An empty `--sigma` leaves the loss
    out.
    """
    from rich.progress import track

    from clients.simulated_data import SimulatedData
    from fedlora.check import check_scenario
    from simulations.studies.cascade.plot import draw
    from simulations.studies.cascade.trend import run_curve

    base = open_scenario(scenario, set_, check=False, texts="fedlora cascade")
    if not base.privacy.enabled:
        raise FedloraError(
            f"scenario {base.name} has no noise; set privacy.epsilon, or name one that has"
        )
    check_scenario(base)
    sigmas = _numbers(sigma)
    out = out or dated_folder(Path("cascade"))
    _STUDY.check_free(out, overwrite=overwrite, option="--out")
    out.mkdir(parents=True, exist_ok=True)
    short = replace(
        base,
        train=replace(base.train, rounds=rounds),
        head=replace(base.head, share="personal"),
        privacy=replace(base.privacy, release="full"),
        evaluate=replace(base.evaluate, report=False, baseline=False),
    )
    energies = compare(short, draws)
    console = Console()
    _print(console, base.name, energies)
    result = {"energies": [asdict(energy) for energy in energies]}
    _STUDY.clear(out)
    if sigmas:
        noises = [0.0, *sigmas]
        curves = [run_curve(base, s) for s in track(noises, "runs", console=Console(stderr=True))]
        classes = SimulatedData(base, base.federation.clients).labels
        start = math.log(len(classes))  # the head starts near 0, so that all classes are alike
        draw(curves, start, out / "cascade.png", base.name)
        result["curves"] = [
            asdict(curve) | {"predicted": curve.predicted(curves[0], start)} for curve in curves
        ]
    replace_file(out / "cascade.json", json_line(result, indent=2))
    console.print(f"figures: {out}", highlight=False, soft_wrap=True)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError:
        raise FedloraError(f"--sigma is {text!r}; list numbers such as 0.5,1,2") from None


def _print(console: Console, name: str, energies: Sequence[Energy]) -> None:
    table = Table(title=f"{name}: noise energy in the gradients of A and B")
    for column in ("layer", "projection", "predicted", "measured", "difference"):
        table.add_column(column, justify="left" if column == "projection" else "right")
    for e in energies:
        shown = (f"{e.predicted:.4g}", f"{e.measured:.4g}", f"{100 * e.error:+.1f}%")
        table.add_row(str(e.layer), e.name, *shown)
    console.print(table)
    console.print(f"largest difference {100 * max(abs(e.error) for e in energies):.1f}%")
