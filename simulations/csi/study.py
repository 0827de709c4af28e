"""The folder of the case study: rows as trials end, then tables, plots and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fedlora.config import Scenario, load_scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.report.result_table import write_tables
from fedlora.storage.files import append_line, held_folder, read_lines, replace_file
from fedlora.storage.outputs import FolderKind
from simulations.csi.figures import draw_all
from simulations.csi.metrics import SNR_DB, decibels
from simulations.csi.trial import SPLIT, Laboratory, Row, Trial
from simulations.studies.compare.page import Section, write_page
from simulations.studies.compare.statistics import Interval, interval
from simulations.studies.workers import worker_pool

ROWS = "rows.jsonl"
_STUDY = FolderKind(
    "study of channel prediction",
    (ROWS,),
    ("scenario.toml", ROWS, "peers.md", "peers.tex", "gaps.md", "gaps.tex", "plots", "report.html"),
)
_TARGETS = (
    ("above the same model on all samples in one place", "union", 0.3),
    ("above the same model on each site's own samples", "own", -1.0),
    ("above a GRU by FedAvg with as many bytes", "gru", -1.0),
)


class StudyFolder:
    """Reads and writes the rows of a study.

    Parameters
    ----------
    path
        The folder; made if it does not exist.
    scenario
        What is studied.
    overwrite
        Whether a study that is there is replaced; else it is gone on with.

    Raises
    ------
    FedloraError
        When the folder holds a study of another scenario, or something else.
    """

    def __init__(self, path: Path, scenario: Scenario, *, overwrite: bool = False) -> None:
        self.path, kept = path, path / "scenario.toml"
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
        self._file = path / ROWS
        self._file.touch()  # marks the folder before the first trial has ended
        self.rows = read_rows(self._file)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from running the same trials, and read what they may have added before."""
        with held_folder(self.path, "a study"):
            self.rows = read_rows(self._file)
            yield

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that are not there yet."""
        finished = {row.key for row in self.rows}
        return [trial for trial in trials if trial.key not in finished]

    def add(self, row: Row) -> None:
        """Keep a finished trial."""
        self.rows.append(row)
        append_line(self._file, asdict(row), sync=False)

    def split_bytes(self, trial: Trial) -> int:
        """Return the bytes of the split run over a trial's sites, from its seed or another.

        Raises
        ------
        FedloraError
            When none is there.
        """
        runs = [r for r in self.rows if (r.model, r.how, r.sites) == (SPLIT, *_common(trial))]
        own = [row.bytes for row in runs if row.seed == trial.seed] or [row.bytes for row in runs]
        if not own:
            raise FedloraError(
                f"{trial.model} by FedAvg takes the bytes of a split run over {trial.sites} sites, "
                "and none is there; run that first"
            )
        return own[0]


def _common(trial: Trial) -> tuple[str, int]:
    return "federated", trial.sites


def read_rows(path: Path) -> list[Row]:
    """Read the finished trials."""
    return [Row(**table) for table in read_lines(path)[0]]


_LABORATORIES: dict[str, Laboratory] = {}


def run_trial(base: Scenario, trial: Trial, split_bytes: int) -> Row:
    """Run a trial in a process that may run others of the same scenario."""
    import torch

    torch.set_num_threads(1)
    name = scenario_to_toml(base)
    if name not in _LABORATORIES:
        _LABORATORIES[name] = Laboratory(base)
    return _LABORATORIES[name].run(trial, split_bytes)


def run_missing(
    folder: StudyFolder,
    base: Scenario,
    trials: Sequence[Trial],
    workers: int,
    tell: Callable[[], None],
) -> None:
    """Run the trials that are not there; those that take a split run's bytes come last.

    Parameters
    ----------
    folder
        Where rows go.
    base
        The scenario.
    trials
        All that are wanted.
    workers
        Processes; 0: one for each core.
    tell
        Called after each trial.
    """
    missing = folder.missing(trials)
    after = [t for t in missing if t.how == "federated" and t.model != SPLIT]
    for batch in ([t for t in missing if t not in after], after):
        sizes = {t: folder.split_bytes(t) if t in after else 0 for t in batch}
        if workers == 1:
            for trial in batch:
                folder.add(run_trial(base, trial, sizes[trial]))
                tell()
        elif batch:
            with worker_pool(workers) as pool:
                runs = [pool.submit(run_trial, base, trial, sizes[trial]) for trial in batch]
                for run in as_completed(runs):
                    folder.add(run.result())
                    tell()


HEADER = ("model", "samples", "NMSE, dB", "mean of ratios, dB", "SGCS", "rate", "MB on the air")


def write_results(folder: StudyFolder, base: Scenario, rows: Sequence[Row]) -> list[Section]:
    """Write tables, plots and the page of finished trials, and return the tables."""
    sections = [Section(_title(rows), HEADER, table_rows(rows))]
    write_tables(folder.path / "peers", HEADER, sections[0].rows, 2)
    if gaps := gap_rows(rows):
        header = ("NMSE of the split run", "target, dB", "difference, dB", "met")
        sections.append(Section("Paired by seed, with the 95% interval", header, gaps))
        write_tables(folder.path / "gaps", header, gaps, 1)
    drawn = draw_all(folder.path / "plots", rows)
    write_page(folder.path, base, sections, drawn, [])
    return sections


def _title(rows: Sequence[Row]) -> str:
    most = rows[0].scores.get("rate_most") if rows else None
    perfect = "" if most is None else f", of {most:.2f} with the channel itself"
    return (
        "Means over seeds with half of the 95% interval; NMSE is a ratio of sums; the rate is of a "
        f"matched filter at {SNR_DB:g} dB in bit/s/Hz{perfect}"
    )


def grouped(rows: Sequence[Row]) -> Mapping[tuple[str, str, int], list[Row]]:
    """Return rows by model, how and sites, in the order of their first."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.model, row.how, row.sites), []).append(row)
    return found


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of a line for each model and way of learning, the best first."""
    lines = []
    for (model, how, sites), own in grouped(rows).items():
        mean = interval([decibels(row.scores["nmse"]) for row in own])
        ratios = interval([decibels(row.scores["nmse_mean"]) for row in own])
        cells = [model, f"{how}, {sites} sites" if how == "federated" else how]
        cells += [_half(mean), f"{ratios.mean:.1f}"]
        for name in ("sgcs", "rate"):
            known = [row.scores[name] for row in own if name in row.scores]
            cells.append(f"{sum(known) / len(known):.3f}" if known else "")
        sent = sum(row.bytes for row in own) / len(own)
        lines.append((mean.mean, [*cells, f"{sent / 1e6:.1f}" if sent else ""]))
    return [cells for _, cells in sorted(lines, key=lambda line: line[0])]


def gap_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Return what the split run over most sites is above others by, paired by seed, in dB."""
    found = {
        key: {row.seed: decibels(row.scores["nmse"]) for row in own}
        for key, own in grouped(rows).items()
    }
    most = max((row.sites for row in rows), default=0)
    split = found.get((SPLIT, "federated", most), {})
    others = {
        "union": found.get((SPLIT, "union", most), {}),
        "own": found.get((SPLIT, "own", most), {}),
        "gru": found.get(("gru", "federated", most), {}),
    }
    lines = []
    for title, name, target in _TARGETS:
        gaps = [split[seed] - other for seed, other in others[name].items() if seed in split]
        if gaps:
            gap = interval(gaps)
            met = "yes" if gap.mean <= target else "no"
            lines.append([title, f"at most {target:g}", _half(gap), met])
    return lines


def _half(mean: Interval) -> str:
    return f"{mean.mean:.2f}" + (f" ± {mean.high - mean.mean:.2f}" if mean.known else "")
