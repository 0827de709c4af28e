"""``fedlora csi``: channel trajectories for ``task.kind = "forecast"``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlora.errors import FedloraError
from fedlora.storage import check_new_file
from simulations.options import OverwriteOption, SetOption, WorkersOption, open_scenario

if TYPE_CHECKING:
    from simulations.csi.generate import Setting


class Action(StrEnum):
    """What is done."""

    MAKE = "make"
    STUDY = "study"


class Model(StrEnum):
    """3GPP TR 38.901."""

    CDL = "cdl"
    UMA = "uma"


class Duplex(StrEnum):
    """How bands are shared out."""

    TDD = "tdd"
    FDD = "fdd"


def csi(
    context: typer.Context,
    action: Annotated[
        Action,
        typer.Argument(
            help="`make` draws channels and writes them; `study` compares a scenario with peers."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="A `.safetensors` file to write; of a study its folder.")
    ],
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
    duplex: Annotated[
        Duplex, typer.Option(help="`fdd`: steps after the history are of another band.")
    ] = Duplex.TDD,
    history: Annotated[
        int, typer.Option(min=1, max=10_000, help="Under `fdd`: steps of the first band.")
    ] = 16,
    gap_khz: Annotated[float, typer.Option(help="Under `fdd`: between the two bands.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Everything follows from it.")] = 0,
    scenario: Annotated[str, typer.Option(help="Of a study: what is compared.")] = "csi-prediction",
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Of a study: from the scenario's.")
    ] = 3,
    peers: Annotated[bool, typer.Option(help="Of a study: networks to compare with.")] = True,
    workers: WorkersOption = 0,
    limit: Annotated[
        int, typer.Option(min=0, help="Of a study: run so many trials, then stop; 0: all.")
    ] = 0,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw channels of moving users (3GPP TR 38.901, by Sionna), or compare predictors of channels.

    A study writes `trials.jsonl`, tables, plots and `report.html`; one that was interrupted is gone
    on with.
    """
    _check_options(context, action)
    if action is Action.STUDY:
        _study(out, scenario, set_, Wanted(seeds, peers, workers, limit), overwrite=overwrite)
        return
    from simulations.csi.generate import Setting

    if duplex is Duplex.TDD and (history != 16 or gap_khz):
        raise FedloraError(
            "--history and --gap-khz are of two bands, and --duplex is tdd; set it to fdd, or "
            "leave them out"
        )
    setting = Setting(
        "cdl" if model is Model.CDL else "uma",
        trajectories,
        sites,
        steps,
        1e-3 * _within("--interval-ms", interval_ms, 1e4),
        subcarriers,
        1e3 * _within("--spacing-khz", spacing_khz, 1e6),
        _speeds(speeds),
        1e9 * _within("--carrier-ghz", carrier_ghz, 100.0, least=0.5),
        ports,
        seed,
        "tdd" if duplex is Duplex.TDD else "fdd",
        history,
        1e3 * _within("--gap-khz", gap_khz, 1e9, least=0.0),
    )
    _make(out, setting, overwrite=overwrite)


_OF_A_STUDY = ("scenario", "seeds", "peers", "workers", "limit", "set_")
_OF_BOTH = ("action", "out", "overwrite")


def _check_options(context: typer.Context, action: Action) -> None:
    """Refuse options of the other action, which would be ignored."""
    for name in context.params:
        given = context.get_parameter_source(name)
        if name in _OF_BOTH or given is None or given.name != "COMMANDLINE":
            continue
        if (name in _OF_A_STUDY) != (action is Action.STUDY):
            option = f"--{name.strip('_').replace('_', '-')}"
            other = Action.MAKE if action is Action.STUDY else Action.STUDY
            raise FedloraError(
                f"{option} is an option of `csi {other}`, and `csi {action}` takes no account of "
                "it; leave it out"
            )


def _make(out: Path, setting: Setting, *, overwrite: bool) -> None:
    from safetensors.numpy import save

    from fedlora.storage import replace_file
    from simulations.csi.generate import counts, draw, stacked
    from simulations.progress import Bars

    if out.suffix != ".safetensors":
        raise FedloraError(f"--out is {str(out)!r}; name a .safetensors file")
    check_new_file(out, "--out", overwrite=overwrite)
    with Bars() as bars:
        groups = [*bars.track(draw(setting), len(counts(setting)), description="drawing channels")]
    arrays = stacked(groups, setting.seed)
    replace_file(out, save(arrays, {"source": f"3GPP TR 38.901 by Sionna: {setting}"}))
    typer.echo(
        f"wrote {setting.trajectories} trajectories of {setting.sites} sites to {out}, "
        f"{out.stat().st_size / 1e6:.2f} MB; task.forecast.features is {2 * setting.subcarriers}, "
        "data.axes is record, port, time, feature, feature"
    )


@dataclass(frozen=True)
class Wanted:
    """How much of a study is run; see the command's options."""

    seeds: int
    peers: bool
    workers: int
    limit: int


def _study(
    out: Path, name: str, set_: list[str] | None, wanted: Wanted, *, overwrite: bool
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fedlora.report import seconds_text
    from simulations.csi.study import rows_of, run_study, study_folder, write_results
    from simulations.csi.trial import plan
    from simulations.csi.windows import Data

    base = open_scenario(name, set_)
    sites = len(Data(base).sites)
    trials = plan(sites, range(base.seed, base.seed + wanted.seeds), wanted.peers)
    folder, console = study_folder(out, base, overwrite=overwrite), Console()
    missing = folder.results.missing(trials)[: wanted.limit or None]
    if missing:
        less = "" if wanted.seeds == 1 and not wanted.peers else "; --seeds 1 --no-peers does less"
        Console(stderr=True).print(
            f"{len(missing)} trials: about {seconds_text(sum(t.shipped_s for t in missing))} of "
            f"processor time for the channels that ship{less}",
            highlight=False,
        )
    with folder.held():
        run_study(folder, base, trials, wanted.workers, wanted.limit)
        sections = write_results(folder, base, rows_of(folder, trials))
    for section in sections:
        narrow: Any = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
        table = Table(title=section.title, **narrow)
        for place, column in enumerate(section.header):
            text = place < 1
            justify: Any = "left" if text else "right"
            table.add_column(column, justify=justify, overflow="fold", no_wrap=text)
        for cells in section.rows:
            table.add_row(*cells)
        console.print(table)
    console.print(
        f"rows, tables, plots and page: {out}", markup=False, highlight=False, soft_wrap=True
    )


def _within(option: str, value: float, most: float, least: float = 1e-6) -> float:
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
