"""One run of one mechanism at one epsilon with one seed."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from fedlora.config import PrivacyPolicy, Scenario, load_scenario, scenario_to_toml, with_overrides
from fedlora.errors import FedloraError
from fedlora.storage.files import replace_file
from fedlora.storage.outputs import FolderKind
from simulations.in_process import Record, connect
from simulations.studies.compare.store import write_table

NO_NOISE = "none"
_STUDY = FolderKind(
    "study of utility", ("utility.csv",), ("scenario.toml", "utility.csv", "utility.png")
)


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


def run_trial(base: Scenario, trial: Trial) -> Row:
    """Run a trial in this process.

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
    spent = [spending.epsilon(client) for client in server.cohort.clients]
    server.end()
    return Row(
        trial.mechanism.name,
        trial.epsilon,
        trial.seed,
        round(float(last["metric"] or 0.0), 6),
        round(float(last["loss"] or 0.0), 6),
        round(max((epsilon or 0.0) for epsilon in spent), 6),
        round(last.get("sigma", 0.0), 6),
        round(time.perf_counter() - started, 1),
    )


class UtilityFolder:
    """The folder of a study: each finished trial is a line that survives an interruption.

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

    def __init__(self, path: Path, scenario: Scenario, *, overwrite: bool = False) -> None:
        kept = path / "scenario.toml"
        if overwrite or not kept.exists():
            _STUDY.check_free(path, overwrite=overwrite, option="--out")
            _STUDY.clear(path)
        elif load_scenario(kept) != scenario:
            raise FedloraError(
                f"{path} holds a study with other settings; give another --out, or replace it with "
                "--overwrite"
            )
        path.mkdir(parents=True, exist_ok=True)
        replace_file(kept, scenario_to_toml(scenario).encode())
        self.csv = path / "utility.csv"
        self.rows = read_rows(self.csv) if self.csv.exists() else []
        self._write()  # marks the folder before the first trial has ended

    def missing(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return the trials that are not there yet."""
        finished = {row.key for row in self.rows}
        return [trial for trial in trials if trial.key not in finished]

    def add(self, row: Row) -> None:
        """Keep a finished trial."""
        self.rows.append(row)
        self._write()

    def _write(self) -> None:
        columns = [field.name for field in fields(Row)]
        write_table(self.csv, columns, [asdict(r) for r in sorted(self.rows, key=lambda r: r.key)])


def read_rows(path: Path) -> list[Row]:
    """Read a ``utility.csv``."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            Row(
                table["mechanism"],
                float(table["epsilon"]),
                int(table["seed"]),
                *(float(table[field.name]) for field in fields(Row)[3:]),
            )
            for table in csv.DictReader(stream)
        ]


def plan(mechanisms: Sequence[Mechanism], epsilons: Sequence[float], seeds: range) -> list[Trial]:
    """Return all trials, seed by seed, so that an interrupted study has whole curves."""
    trials = []
    for seed in seeds:
        trials.append(Trial(Mechanism(NO_NOISE, ()), float("inf"), seed))
        trials += [Trial(m, epsilon, seed) for m in mechanisms for epsilon in epsilons]
    return trials
