"""The folder of the case study: rows as trials end, then tables, plots and a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedlora.config import Scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.report import decibels, write_tables
from simulations.csi.figures import draw_all
from simulations.csi.metrics import SNR_DB
from simulations.csi.trial import GRUS, SPLIT, Laboratory, Row, Trial
from simulations.studies.compare.page import Section, write_page
from simulations.studies.compare.statistics import Interval, interval
from simulations.studies.kit import Record, StudyFolder, run_missing

_TARGETS = (
    ("above the same model on all samples in one place", "union", 0.3),
    ("above the same model on each site's own samples", "own", -1.0),
    ("above the best GRU by FedAvg within as many bytes", "gru", -1.0),
)


_FILES = ("peers.md", "peers.tex", "gaps.md", "gaps.tex", "plots", "report.html")


def study_folder(path: Path, scenario: Scenario, *, overwrite: bool = False) -> StudyFolder:
    """Open the folder of a study; see ``StudyFolder``."""
    noun = "a study of channel prediction"
    return StudyFolder(path, noun, _FILES, scenario, _key, overwrite=overwrite)


def _key(record: Record) -> tuple[str, str, int, int]:
    return Row(**record).key


def rows_of(folder: StudyFolder, trials: Iterable[Trial]) -> list[Row]:
    """Return the finished ones of some trials, in their order."""
    records = folder.results.records
    return [Row(**records[trial.key]) for trial in trials if trial.key in records]


_LABORATORIES: dict[str, Laboratory] = {}


def run_trial(trial: Trial, base: Scenario, split_bytes: int = 0) -> dict[str, Any]:
    """Run a trial in a process that may run others of the same scenario; return its row."""
    import torch

    torch.set_num_threads(1)
    name = scenario_to_toml(base)
    if name not in _LABORATORIES:
        _LABORATORIES[name] = Laboratory(base)
    return asdict(_LABORATORIES[name].run(trial, split_bytes))


def run_study(
    folder: StudyFolder, base: Scenario, trials: Sequence[Trial], workers: int, limit: int
) -> None:
    """Run the trials that are not there; split runs, whose bytes others take, come first.

    Parameters
    ----------
    folder
        Where results go.
    base
        The scenario.
    trials
        All that are wanted.
    workers
        Processes; 0: one for each core.
    limit
        How many are run at most; 0: all.
    """
    missing = folder.results.missing(trials)[: limit or None]
    first = [t for t in missing if (t.model, t.how) == (SPLIT, "federated")]
    rest = [t for t in missing if t not in first]
    for title, batch in (("split runs", first), ("trials", rest)):
        run_missing(
            folder.results,
            batch,
            run_trial,
            lambda trial: (base, _split_bytes(folder, trial)),
            python_path=base.python_path,
            workers=workers,
            title=title,
        )


def _split_bytes(folder: StudyFolder, trial: Trial) -> int:
    """Return the bytes that a trial may take: those of the split run of its sites and seed."""
    if trial.how != "federated" or trial.model == SPLIT:
        return 0
    record = folder.results.records.get((SPLIT, "federated", trial.sites, trial.seed))
    if record is None:
        raise FedloraError(
            f"{trial.model} by FedAvg takes the bytes of the split run of seed {trial.seed} over "
            f"{trial.sites} sites, which is not there; run that first, with a larger --limit"
        )
    return Row(**record).bytes


HEADER = ("model", "samples", "NMSE, dB", "mean of ratios, dB", "SGCS", "rate", "MB")


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
        cells += [with_half(mean), f"{ratios.mean:.1f}"]
        for name in ("sgcs", "rate"):
            known = [row.scores[name] for row in own if name in row.scores]
            cells.append(f"{sum(known) / len(known):.3f}" if known else "")
        sent = sum(row.bytes for row in own) / len(own)
        lines.append((mean.mean, [*cells, f"{sent / 1e6:.1f}" if sent else ""]))
    return [cells for _, cells in sorted(lines, key=lambda line: line[0])]


@dataclass(frozen=True)
class Gap:
    """What the split run over most sites is above another by.

    Attributes
    ----------
    title
        Which other.
    target
        At most, in dB.
    values
        In dB, one for each seed that both were run with.
    """

    title: str
    target: float
    values: Sequence[float]


def gaps(rows: Sequence[Row]) -> list[Gap]:
    """Return what the split run over most sites is above others by, as far as both were run."""
    found = {
        key: {row.seed: decibels(row.scores["nmse"]) for row in own}
        for key, own in grouped(rows).items()
    }
    most = max((row.sites for row in rows), default=0)
    split = found.get((SPLIT, "federated", most), {})
    grus = [found.get((name, "federated", most), {}) for name in GRUS]
    others = {
        "union": found.get((SPLIT, "union", most), {}),
        "own": found.get((SPLIT, "own", most), {}),
        "gru": {seed: min(own[seed] for own in grus if seed in own) for seed in set().union(*grus)},
    }
    pairs = (
        Gap(title, target, [split[s] - other for s, other in others[name].items() if s in split])
        for title, name, target in _TARGETS
    )
    return [gap for gap in pairs if gap.values]


def gap_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of a line for each of ``gaps``."""
    found = []
    for gap in gaps(rows):
        mean = interval(gap.values)
        met = "yes" if mean.mean <= gap.target else "no"
        found.append([gap.title, f"at most {gap.target:g}", with_half(mean), met])
    return found


def with_half(mean: Interval) -> str:
    """Return a mean with half of its interval, where there is one."""
    return f"{mean.mean:.2f}" + (f" ± {mean.high - mean.mean:.2f}" if mean.known else "")
