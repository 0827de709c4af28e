"""``fedlora compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.errors import FedloraError
from simulations.options import (
    OverwriteOption,
    SetOption,
    WorkersOption,
    looking,
    open_scenario,
    require_losses,
)
from simulations.studies.compare.reward import DEFAULT_PRICE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedlora.config import Scenario
    from simulations.studies.compare.trial import Trial


def compare(
    scenario: Annotated[
        str, typer.Argument(help="A shipped scenario, or the path of a TOML file.")
    ],
    strategies: Annotated[
        str,
        typer.Option(
            help="Comma-separated: names, `module:Class`, or either with options as in "
            "`uniform(r=4)`; `uniform(r=1..16)` is one for each rank."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the comparison; finished trials are kept.")],
    snr: Annotated[str, typer.Option(help="Mean SNRs in dB.")] = "-5,0,5,10,15",
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Seeds, counted up from the scenario's.")
    ] = 5,
    price: Annotated[
        float, typer.Option(min=0.0, help="Nats that a whole deadline of air time costs (lambda).")
    ] = DEFAULT_PRICE,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Nats of final loss that do not matter: tests which strategies are equal. Set it "
            "before the first trial."
        ),
    ] = None,
    figures: Annotated[
        str, typer.Option(help="Plots as `png`, and as `pdf` or `svg` too, separated by commas.")
    ] = "png",
    workers: WorkersOption = 0,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Compare rank strategies over SNRs and seeds, with confidence intervals.

    All strategies get the same seeds, data and fading. Writes `compare.csv`,
    `winners.csv`, `frontier.csv`, the table of means as `means.md` and `means.tex`,
    plots and `report.html`; with --margin `equivalence.csv`.
    """
    from fedlora.checks import number, positive
    from fedlora.report.figure import parse_formats
    from simulations.studies.compare.strategies import parse_snrs_db, parse_strategies

    number("--price", price)
    if margin is not None:
        positive("--margin", margin)
    formats = parse_formats(figures)
    contenders, snrs_db = parse_strategies(strategies), parse_snrs_db(snr)
    base = open_scenario(scenario, set_, check=False)
    if base.channel.deliver_every == 0:
        raise FedloraError(
            "channel.deliver_every is 0, so that no adapter is ever sent; set it to 1 or more to "
            "compare strategies over the air"
        )
    with looking():
        from fedlora.check import check_scenario
        from simulations.studies.compare.trial import Trial

        require_losses(base, "strategies are compared by held-out loss")
        check_scenario(base)
        trials = [
            Trial(contender, snr_db, base.seed + offset)
            for contender in contenders
            for snr_db in snrs_db
            for offset in range(seeds)
        ]
        _check(base, trials)

    from rich.console import Console

    from simulations.studies.compare.report import write_results
    from simulations.studies.compare.runner import run_all
    from simulations.studies.compare.store import CompareFolder

    folder = CompareFolder(out, base, price, margin=margin, overwrite=overwrite)
    with folder.held():
        run_all(folder, base, trials, price, workers)
        write_results(folder, base, Console(), formats)


def _check(base: Scenario, trials: Sequence[Trial]) -> None:
    """Refuse contenders that cannot be made, and SNRs that make no difference."""
    from fedlora.channel import build_channel
    from fedlora.ranks import create_strategy
    from fedlora.server.run import ServerRun
    from simulations.in_process import Record
    from simulations.studies.compare.trial import trial_scenario

    space = ServerRun(base, Record()).training.ranking.space
    for trial in trials:
        create_strategy(trial_scenario(base, trial).ranks, trial.seed).prepare(space)
    first = {trial.snr_db: trial_scenario(base, trial).channel for trial in reversed(trials)}
    found = {build_channel(own, base.seed).truth(0, 0).down_snr_db for own in first.values()}
    if len(first) > 1 and len(found) == 1:
        raise FedloraError(
            f"channel.model {base.channel.model} has SNRs of its own, so that --snr changes "
            "nothing; give one --snr, or choose a model around a mean SNR, such as rayleigh"
        )
