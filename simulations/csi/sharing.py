"""What sharing is worth, by what a model begins with and how many samples a site has.

``python -m simulations.csi.sharing`` trains models over all sites, on all samples in one place, and
on each site's own, each with the number of passes that did best with the first seed on channels
that are neither trained nor tested on; models of one site are tested on its own channels, and on
those of all sites, as a user who moves would ask of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fedlora.config import Scenario, scenario_from_toml, scenario_to_toml, with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from fedlora.split import model_folder
from fedlora.storage import read_object, replace_file
from simulations.csi.fedavg import federated_average
from simulations.csi.networks import network
from simulations.csi.split_training import train_split
from simulations.csi.training import Recipe, predict, train, trained_numbers
from simulations.csi.trial import PEER_BATCH
from simulations.csi.windows import Data, Windows
from simulations.refusals import one_sentence
from simulations.studies.kit import Record, StudyFolder, run_missing

WAYS = ("federated", "union", "own")
GRU = "gru-32"
SHARED_BY = "last value"
"""The start whose split run over all sites a GRU by FedAvg has the bytes of."""
SHIPPED = 80
"""Samples of a site in the channels that ship; where there are to be more, others are taken."""
_BATCH, _ROUNDS = 40, 5
_CHANNELS = "channels.json"
_PATCHES = ("front=channel", "base=none", "patch=4", "channels=8", "blocks=1")
_STARTS: dict[str, tuple[str, ...]] = {
    "covariance": (),
    "last value": ("task.forecast.base=last",),
    "nothing": (*(f"task.forecast.{key}" for key in _PATCHES), "task.max_length=4"),
}


@dataclass(frozen=True)
class Cell:
    """A model and how much of the data it gets.

    Attributes
    ----------
    start
        What it begins with, a key of ``_STARTS``; or ``GRU``.
    samples
        Of each site.
    ladder
        Numbers of passes over the samples of which the best is taken.
    """

    start: str
    samples: int
    ladder: tuple[int, ...]


CELLS = (
    Cell("covariance", 80, (5, 20)),
    Cell("last value", 80, (5, 20, 60)),
    Cell("nothing", 80, (20, 60, 180)),
    Cell(GRU, 80, (12, 60)),
    Cell("covariance", 20, (5, 20)),
    Cell("last value", 20, (20, 60, 180)),
    Cell("last value", 200, (5, 20)),
)


@dataclass(frozen=True)
class Trial:
    """What to run: a cell's model, how it learns, for how many passes, from which seed."""

    start: str
    samples: int
    how: str
    passes: int
    seed: int

    @property
    def key(self) -> tuple[str, int, str, int, int]:
        """What tells trials apart."""
        return self.start, self.samples, self.how, self.passes, self.seed


@dataclass(frozen=True)
class Row:
    """What came of a trial, a line of ``trials.jsonl``.

    Attributes
    ----------
    start, samples, how, passes, seed
        See ``Trial``.
    choice, test
        See ``figures``, on the channels by which passes are chosen, and on those that are told.
    bytes
        On the air in the whole run, of all sites, up and down.
    seconds
        Wall-clock time.
    """

    start: str
    samples: int
    how: str
    passes: int
    seed: int
    choice: dict[str, Any]
    test: dict[str, Any]
    bytes: int
    seconds: float

    @property
    def trial(self) -> Trial:
        """What was run."""
        return Trial(self.start, self.samples, self.how, self.passes, self.seed)


Predictor = Callable[[Windows], torch.Tensor]


def figures(models: Sequence[Predictor], windows: Windows) -> dict[str, Any]:
    """Return NMSE, ratios of sums over samples, of one model of all sites or one of each.

    Returns
    -------
    dict
        ``home``: each site's channels by its own model; ``everywhere``: all channels by the model
        of each site in turn; both also ``_by_speed``. With one model the two are the same.
    """
    energy = windows.ahead.double().square().sum((1, 2))
    errors = torch.stack(
        [(model(windows) - windows.ahead).double().square().sum((1, 2)) for model in models]
    )
    whose = windows.site if len(models) > 1 else torch.zeros_like(windows.site)
    found: dict[str, Any] = {}
    for name, error in (
        ("home", errors[whose, torch.arange(len(windows))]),
        ("everywhere", errors.mean(0)),
    ):
        found[name] = float(error.sum() / energy.sum())
        values = sorted(set(windows.speed_kmh.tolist()))
        speeds = [(speed, windows.speed_kmh == speed) for speed in values]
        found[f"{name}_by_speed"] = {
            f"{speed:g}": float(error[own].sum() / energy[own].sum()) for speed, own in speeds
        }
    return found


def settings(base: Scenario, trial: Trial) -> Scenario:
    """Return the scenario of a trial of the split model; at 80 samples and 5 passes, as shipped."""
    batch = min(_BATCH, trial.samples)
    rounds = min(_ROUNDS, trial.passes)
    steps = max(1, trial.passes * (trial.samples // batch) // rounds)
    keys = [*_STARTS[trial.start], f"train.batch_size={batch}", f"train.rounds={rounds}"]
    keys += [f"train.steps={steps}", f"train.warmup_steps={max(2, rounds * steps // 10)}"]
    return with_overrides(base, [*keys, f"evaluate.every={rounds}"])


def run_trial(trial: Trial, base: Scenario, choice: str, budget: int) -> Record:
    """Run a trial in this process; return its row.

    Parameters
    ----------
    trial
        What to run.
    base
        The scenario, with the channels that are trained and tested on.
    choice
        Other channels, by which passes are chosen.
    budget
        Bytes that FedAvg may not exceed.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    data, others = _data(scenario_to_toml(base), trial.samples, choice)
    torch.manual_seed(trial.seed)
    run = _peer if trial.start == GRU else _split
    models, sent = run(trial, base, data, budget)
    row = Row(
        **asdict(trial),
        choice=figures(models, others),
        test=figures(models, data.test),
        bytes=sent,
        seconds=round(time.perf_counter() - started, 1),
    )
    return asdict(row)


@cache
def _data(text: str, samples: int, choice: str) -> tuple[Data, Windows]:
    base = scenario_from_toml(text)
    return Data(base, samples), Data(with_overrides(base, [f"data.test={choice}"])).test


def _split(trial: Trial, base: Scenario, data: Data, budget: int) -> tuple[list[Predictor], int]:
    del budget
    scenario, sites = settings(base, trial), range(len(data.sites))
    groups = [[site] for site in sites] if trial.how == "own" else [list(sites)]
    clients = len(sites) if trial.how == "federated" else 1
    runs = [
        train_split(scenario, data, group, trial.seed, clients=clients, test=data.test.of(*group))
        for group in groups
    ]
    sent = runs[0].bytes if trial.how == "federated" else 0
    return [run.predict for run in runs], sent


def _peer(trial: Trial, base: Scenario, data: Data, budget: int) -> tuple[list[Predictor], int]:
    parts = [data.train.of(site) for site in range(len(data.sites))]

    def made() -> torch.nn.Module:
        torch.manual_seed(trial.seed)
        return network(trial.start, base.task.forecast, str(model_folder(base.model.path)))

    recipe, sent = Recipe(trial.passes, PEER_BATCH), 0
    if trial.how == "own":
        nets = [train(made(), part, recipe, trial.seed) for part in parts]
    elif trial.how == "union":
        whole = Recipe(trial.passes, PEER_BATCH * len(parts))
        nets = [train(made(), data.train, whole, trial.seed)]
    else:
        nets = [made()]
        rounds = max(1, budget // (2 * 4 * trained_numbers(nets[0]) * len(parts)))
        steps = trial.passes * -(-len(parts[0]) // PEER_BATCH)
        sent = federated_average(nets[0], parts, recipe, min(rounds, steps), trial.seed)
    return [_predictor(net) for net in nets], sent


def _predictor(net: torch.nn.Module) -> Predictor:
    return lambda windows: predict(net, windows)


def best_passes(rows: Sequence[Row]) -> dict[tuple[str, int, str], int]:
    """Return the passes with the least error on the channels of choice, with the first seed."""
    found: dict[tuple[str, int, str], tuple[float, int]] = {}
    first = min((row.seed for row in rows), default=0)
    for row in rows:
        if row.seed == first:
            group, told = (row.start, row.samples, row.how), (row.choice["home"], row.passes)
            found[group] = min(found.get(group, told), told)
    return {group: passes for group, (_, passes) in found.items()}


def study(
    folder: StudyFolder, base: Scenario, files: Mapping[str, str], cells: Sequence[Cell], seeds: int
) -> None:
    """Run what is missing: each ladder with the first seed, then the best with the others.

    Parameters
    ----------
    folder
        Where rows go.
    base
        The scenario.
    files
        ``many`` and ``choice``: channels.
    cells
        What is wanted.
    seeds
        How many, from the scenario's.

    Raises
    ------
    FedloraError
        When a GRU is to have the bytes of a run that is not there.
    """
    first = base.seed
    many = with_overrides(base, [f"data.train={files['many']}"]) if files["many"] else base

    def rows() -> list[Row]:
        return [Row(**record) for record in folder.results.records.values()]

    def shared(trial: Trial) -> tuple[Scenario, str, int]:
        peer = (trial.start, trial.how) == (GRU, "federated")
        budget = _budget(rows(), trial.samples, first) if peer else 0
        return many if trial.samples > SHIPPED else base, files["choice"], budget

    def go(trials: list[Trial]) -> None:
        run_missing(folder.results, trials, run_trial, shared, workers=1)

    for peers in (False, True):
        own = [cell for cell in cells if (cell.start == GRU) == peers]
        go([Trial(c.start, c.samples, w, n, first) for c in own for w in WAYS for n in c.ladder])
    best = best_passes(rows())
    groups = [(cell.start, cell.samples, way) for cell in cells for way in WAYS]
    later = range(first + 1, first + seeds)
    go([Trial(*group, best[group], seed) for seed in later for group in groups])


def _budget(rows: Sequence[Row], samples: int, seed: int) -> int:
    """Return the bytes of the split run that a GRU by FedAvg is held against."""
    group = SHARED_BY, samples, "federated"
    passes = best_passes(rows).get(group)
    for row in rows:
        if row.trial == Trial(*group, passes or 0, seed):
            return row.bytes
    raise FedloraError(
        f"{GRU} by FedAvg takes the bytes of the split run that begins with the {SHARED_BY}, of "
        f"{samples} samples a site, which is not there; run --start {SHARED_BY!r} first"
    )


def sharing_folder(path: Path, base: Scenario, choice: str) -> StudyFolder:
    """Open the folder of rows; see ``StudyFolder``."""
    return StudyFolder(
        path,
        "a study of sharing",
        (_CHANNELS,),
        base,
        lambda record: Row(**record).trial.key,
        settings={"choice": Path(choice).name},
    )


def check_same(folder: StudyFolder, files: Mapping[str, str]) -> None:
    """Refuse to go on with rows of other channels; a name alone does not tell them.

    Parameters
    ----------
    folder, files
        As for ``study``.

    Raises
    ------
    FedloraError
        When a file holds others than what was run with.
    """
    place = folder.path / _CHANNELS
    known = read_object(place) or {}
    for option, file in files.items():
        if not file:
            continue
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if known.setdefault(option, digest) != digest:
            raise FedloraError(
                f"--{option} {file} holds other channels than those that the rows in {folder.path} "
                "are of; give that file, or another --out"
            )
    replace_file(place, json.dumps(known).encode())


def _check_channels(base: Scenario, option: str, override: str) -> None:
    """Refuse a file of channels before a folder is made; its option is named."""
    try:
        Data(with_overrides(base, [override]))
    except FedloraError as error:
        raise FedloraError(f"{option}: {error}") from None


def main(arguments: Sequence[str]) -> None:
    """Run the study, or go on with it."""
    parser = argparse.ArgumentParser(prog="python -m simulations.csi.sharing", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--choice", required=True, help="channels by which passes are chosen")
    parser.add_argument("--many", default="", help="channels where a site is to have more than 80")
    parser.add_argument("--start", action="append", help="of these alone; may be given again")
    parser.add_argument("--samples", type=int, action="append", help="of so many a site alone")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    base = find_scenario("csi-prediction")
    files = {"choice": given.choice, "many": given.many}
    cells = [
        cell
        for cell in CELLS
        if cell.start in (given.start or [cell.start])
        and cell.samples in (given.samples or [cell.samples])
        and (given.many or cell.samples <= SHIPPED)
    ]
    if not cells:
        starts, samples = (sorted({getattr(c, key) for c in CELLS}) for key in ("start", "samples"))
        raise FedloraError(
            f"--start {given.start} and --samples {given.samples} leave nothing to run; choose of "
            f"{starts} and {samples}, above {SHIPPED} with --many"
        )
    _check_channels(base, "--choice", f"data.test={given.choice}")
    if given.many:
        _check_channels(base, "--many", f"data.train={given.many}")
    folder = sharing_folder(given.out, base, given.choice)
    with folder.held():
        check_same(folder, files)
        study(folder, base, files, cells, given.seeds)


if __name__ == "__main__":
    with one_sentence():
        main(sys.argv[1:])
