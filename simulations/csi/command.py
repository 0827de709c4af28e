"""``fedlora csi``: channel trajectories for ``task.kind = "forecast"``."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedlora.errors import FedloraError
from fedlora.storage.outputs import check_new_file
from simulations.options import OverwriteOption


class Action(StrEnum):
    """What is done."""

    MAKE = "make"


class Model(StrEnum):
    """3GPP TR 38.901."""

    CDL = "cdl"
    UMA = "uma"


def csi(
    action: Annotated[Action, typer.Argument(help="`make` draws channels and writes them.")],
    out: Annotated[Path, typer.Option("--out", help="A `.safetensors` file to write.")],
    model: Annotated[
        Model, typer.Option(help="`cdl`: each site its profile; `uma`: an urban macro cell.")
    ] = Model.CDL,
    trajectories: Annotated[int, typer.Option(min=1, max=1_000_000, help="Of all sites.")] = 1000,
    sites: Annotated[int, typer.Option(min=1, max=10_000, help="Column `site` of records.")] = 10,
    speeds: Annotated[str, typer.Option(help="In km/h, separated by commas.")] = "10,30,60,100",
    steps: Annotated[int, typer.Option(min=2, max=10_000, help="Time steps of each.")] = 20,
    interval_ms: Annotated[float, typer.Option(help="Time between two steps.")] = 0.5,
    subcarriers: Annotated[int, typer.Option(min=1, max=4096, help="Of the band.")] = 24,
    spacing_khz: Annotated[float, typer.Option(help="Between subcarriers.")] = 360.0,
    carrier_ghz: Annotated[float, typer.Option(help="Carrier frequency, 0.5 to 100.")] = 2.4,
    ports: Annotated[int, typer.Option(min=1, max=64, help="Base station antennas.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Everything follows from it.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw channels of moving users (3GPP TR 38.901, by Sionna) into a file for forecasts."""
    del action
    from rich.progress import track
    from safetensors.numpy import save

    from fedlora.storage.files import replace_file
    from simulations.csi.generate import Setting, counts, draw, stacked

    if out.suffix != ".safetensors":
        raise FedloraError(f"--out is {str(out)!r}; name a .safetensors file")
    check_new_file(out, "--out", overwrite=overwrite)
    setting = Setting(
        "cdl" if model is Model.CDL else "uma",
        trajectories,
        sites,
        steps,
        1e-3 * _positive("--interval-ms", interval_ms, 1e4),
        subcarriers,
        1e3 * _positive("--spacing-khz", spacing_khz, 1e6),
        _speeds(speeds),
        1e9 * _positive("--carrier-ghz", carrier_ghz, 100.0, least=0.5),
        ports,
        seed,
    )
    groups = [*track(draw(setting), "drawing channels", len(counts(setting)))]
    arrays = stacked(groups, seed)
    about = {"source": f"3GPP TR 38.901 by Sionna: {setting}"}
    replace_file(out, save(arrays, about))
    features = 2 * subcarriers
    typer.echo(
        f"wrote {trajectories} trajectories of {sites} sites to {out}, "
        f"{out.stat().st_size / 1e6:.2f} MB; task.forecast.features is {features}, data.axes is "
        "record, port, time, feature, feature"
    )


def _positive(option: str, value: float, most: float, least: float = 1e-6) -> float:
    if not least <= value <= most:
        raise FedloraError(f"{option} is {value:g}; set {least:g} to {most:g}")
    return value


def _speeds(text: str) -> tuple[float, ...]:
    try:
        speeds = tuple(float(word) for word in text.split(","))
    except ValueError:
        speeds = ()
    if not speeds or not all(0 <= speed < math.inf for speed in speeds):
        raise FedloraError(f"--speeds is {text!r}; write km/h from 0, separated by commas")
    return speeds
