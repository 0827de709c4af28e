"""One run of one mechanism at one epsilon with one seed."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedlora.config import PrivacyPolicy, Scenario, with_overrides
from fedlora.errors import FedloraError
from simulations.in_process import Record, connect
from simulations.studies.kit import StudyFolder

NO_NOISE = "none"


@dataclass(frozen=True)
class Mechanism:
    """A way to add noise: a name, and what it sets.

    Attributes
    ----------
    name
        As it is shown.
    overrides
        Scenario keys, as ``section.key=value``.
    """

    name: str
    overrides: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Mechanism:
        """Read ``RELEASE`` or ``NAME:key=value;key=value``.

        Raises
        ------
        FedloraError
            When the name is missing or that of the run without noise.
        """
        name, _, settings = text.partition(":")
        if not name or name == NO_NOISE:
            raise FedloraError(
                f"mechanism {text!r} has no name of its own; write RELEASE or NAME:key=value"
            )
        if not settings:
            return cls(name, (f"privacy.release={name}",))
        return cls(name, tuple(part for part in settings.split(";") if part))


@dataclass(frozen=True)
class Row:
    """What came of a trial, a line of ``utility.csv``.

    Attributes
    ----------
    mechanism
        Name, ``none`` without noise.
    epsilon
        Target; infinite without noise.
    seed
        Of data, partition, model and batches; noise is never seeded.
    metric, loss
        Held-out, after the last round.
    epsilon_spent
        The largest of any client's, by its own account.
    sigma
        Least noise of any upload over the clipping norm.
    seconds
        Wall-clock time.
    """

    mechanism: str
    epsilon: float
    seed: int
    metric: float
    loss: float
    epsilon_spent: float
    sigma: float
    seconds: float

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Row:
        """Read a line; JSON has null for what is infinite."""
        numbers = {
            name: math.inf if value is None else float(value)
            for name, value in line.items()
            if name not in ("mechanism", "seed")
        }
        return cls(mechanism=line["mechanism"], seed=int(line["seed"]), **numbers)

    @property
    def key(self) -> tuple[str, float, int]:
        """What tells trials apart."""
        return self.mechanism, self.epsilon, self.seed


@dataclass(frozen=True)
class Trial:
    """What to run; see ``Row`` for the fields."""

    mechanism: Mechanism
    epsilon: float
    seed: int

    @property
    def key(self) -> tuple[str, float, int]:
        """What tells trials apart."""
        return self.mechanism.name, self.epsilon, self.seed

    def __str__(self) -> str:
        """Return a few words for a line of progress."""
        return f"{self.mechanism.name}, epsilon {self.epsilon:g}, seed {self.seed}"

    def scenario(self, base: Scenario) -> Scenario:
        """Return the scenario of this trial.

        Raises
        ------
        FedloraError
            When the mechanism does not fit the scenario.
        """
        base = with_overrides(base, self.mechanism.overrides)
        privacy = PrivacyPolicy()
        if self.mechanism.name != NO_NOISE:
            privacy = replace(base.privacy, epsilon=self.epsilon, sigma=None)
        evaluate = replace(base.evaluate, every=base.train.rounds, baseline=False, report=True)
        compute = replace(base.compute, threads=1)
        return replace(base, seed=self.seed, privacy=privacy, evaluate=evaluate, compute=compute)


def run_trial(trial: Trial, base: Scenario) -> dict[str, Any]:
    """Run a trial in this process; return its row.

    Raises
    ------
    FedloraError
        When the scenario cannot be used, or a client was lost on the way.
    """
    record, started = Record(), time.perf_counter()
    server = connect(trial.scenario(base), record, workers=1)
    server.training.run()
    if server.cohort.lost:
        raise FedloraError(f"trial {trial.key} lost clients: {server.cohort.reasons()}")
    last, spending = record.rounds[-1], server.training.spending
    metric, loss = last["metric"], last["loss"]
    if metric is None or loss is None:
        raise FedloraError(
            f"trial {trial.key} evaluated no row: no client has any that is held out; raise "
            "data.holdout"
        )
    spent = [spending.epsilon(client) for client in server.cohort.clients]
    server.end()
    row = Row(
        trial.mechanism.name,
        trial.epsilon,
        trial.seed,
        round(metric, 6),
        round(loss, 6),
        round(max((epsilon or 0.0) for epsilon in spent), 6),
        round(last.get("sigma", 0.0), 6),
        round(time.perf_counter() - started, 1),
    )
    return asdict(row)


def utility_folder(path: Path, scenario: Scenario, *, overwrite: bool = False) -> StudyFolder:
    """Return the folder of a study, with the rows of an ``utility.csv`` that is all there is.

    Parameters
    ----------
    path
        The folder; made if it does not exist.
    scenario
        What all trials have in common.
    overwrite
        Whether a study that is there is replaced; else it is gone on with.

    Raises
    ------
    FedloraError
        When the folder holds a study of another scenario, or something else.
    """
    folder = StudyFolder(
        path,
        "a study of utility",
        ("utility.csv", "utility.png"),
        scenario,
        lambda line: Row.of(line).key,
        overwrite=overwrite,
        marks=("utility.csv",),
    )
    if not folder.results.records and (path / "utility.csv").exists():
        with folder.held():
            for row in read_rows(path / "utility.csv"):
                folder.results.add(asdict(row))
    return folder


def read_rows(path: Path) -> list[Row]:
    """Read a ``utility.csv``."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [Row.of(line) for line in csv.DictReader(stream)]


def plan(mechanisms: Sequence[Mechanism], epsilons: Sequence[float], seeds: range) -> list[Trial]:
    """Return all trials, seed by seed, so that an interrupted study has whole curves."""
    trials = []
    for seed in seeds:
        trials.append(Trial(Mechanism(NO_NOISE, ()), float("inf"), seed))
        trials += [Trial(m, epsilon, seed) for m in mechanisms for epsilon in epsilons]
    return trials
