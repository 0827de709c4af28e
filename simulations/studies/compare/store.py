"""The folder of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.storage import replace_file
from simulations.studies.compare.trial import Result
from simulations.studies.kit import Results, StudyFolder, write_table

COLUMNS = (
    "strategy",
    "snr_db",
    "seed",
    "metric",
    "loss",
    "reward",
    "adapter_bits",
    "air_seconds",
    "late",
    "mean_rank",
)
_FILES = (
    *("references.jsonl", "compare.csv", "winners.csv", "frontier.csv", "equivalence.csv"),
    *("margin", "plots", "report.html", "means.md", "means.tex"),
)


class CompareFolder(StudyFolder):
    """Reads and writes the results of a comparison.

    ``trials.jsonl`` gets a line as soon as a trial ends; ``compare.csv`` is written from it.

    Parameters
    ----------
    path
        The folder; made if it does not exist.
    scenario
        What is compared.
    price
        Nats that a whole deadline of air time costs.
    margin
        Difference of the final loss that does not matter, in nats; None tests no equivalence.
    overwrite
        Whether a comparison that is there is replaced; else it is gone on with.

    Raises
    ------
    FedloraError
        When the folder holds a comparison of another scenario or at another price, trials that
        ended before this margin was set, or something else.
    """

    def __init__(
        self,
        path: Path,
        scenario: Scenario,
        price: float,
        *,
        margin: float | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(
            path,
            "a comparison",
            _FILES,
            scenario,
            lambda line: (line["row"]["strategy"], line["row"]["snr_db"], line["row"]["seed"]),
            settings={"price": price},
            overwrite=overwrite,
            marks=("references.jsonl", "compare.csv"),
        )
        self.references = Results(path / "references.jsonl", lambda line: line["seed"], self.noun)
        self.margin = self._fixed(margin)

    def _fixed(self, margin: float | None) -> float | None:
        """Return the margin that was set before the first trial ended."""
        file = self.path / "margin"
        kept = float(file.read_text(encoding="utf-8")) if file.exists() else None
        if margin is None or margin == kept:
            return kept
        if self.results.records:
            before = "no margin" if kept is None else f"a margin of {kept:g} nats"
            raise FedloraError(
                f"{self.path} holds {len(self.results.records)} trials and {before}; one that is "
                f"set when results are there proves nothing; leave --margin {margin:g} out, or "
                "give another --out"
            )
        replace_file(file, f"{margin!r}\n".encode())
        return margin

    @property
    def found(self) -> list[Result]:
        """All finished trials, in an order that does not depend on which ended first."""
        return [_result(self.results.records[key]) for key in sorted(self.results.records)]

    def add(self, result: Result) -> None:
        """Keep a finished trial."""
        self.results.add(asdict(result))

    def write_csv(self) -> Path:
        """Write all finished trials, sorted, and return the file's path."""
        path = self.path / "compare.csv"
        write_table(path, COLUMNS, [result.row for result in self.found])
        return path

    def read(self) -> None:
        """See ``StudyFolder``."""
        super().read()
        self.references.read()


def _result(line: Mapping[str, Any]) -> Result:
    projections = [(layer, name) for layer, name in line["projections"]]
    complaints = line.get("complaints", [])
    name = line.get("metric_name", "")
    return Result(line["row"], projections, line["mean_ranks"], line["trace"], complaints, name)
