"""The folder of a comparison: finished trials survive an interruption."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedlora.config import Scenario, load_scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.storage.files import append_line, held_folder, read_lines, replace_file
from fedlora.storage.outputs import FolderKind
from simulations.studies.compare.reward import Losses
from simulations.studies.compare.trial import Result

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


_COMPARISON = FolderKind(
    "comparison",
    ("trials.jsonl", "references.jsonl", "compare.csv"),
    (
        *("scenario.toml", "trials.jsonl", "references.jsonl", "compare.csv", "winners.csv"),
        *("frontier.csv", "equivalence.csv", "margin", "plots", "report.html"),
        *("means.md", "means.tex"),
    ),
)


class CompareFolder:
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
        self.path = path
        kept, price_line = path / "scenario.toml", f"# price = {price!r}"
        if overwrite or not kept.exists():
            _COMPARISON.check_free(path, overwrite=overwrite, option="--out")
            if path.is_dir():
                with held_folder(path, "a comparison"):
                    _COMPARISON.clear(path)
        else:
            text = kept.read_text(encoding="utf-8")
            if text.partition("\n")[0] != price_line or load_scenario(kept) != scenario:
                raise FedloraError(
                    f"{path} holds a comparison with other settings; give another --out, or "
                    "replace it with --overwrite"
                )
        path.mkdir(parents=True, exist_ok=True)
        replace_file(kept, f"{price_line}\n{scenario_to_toml(scenario)}".encode())
        self._trials = path / "trials.jsonl"
        self._trials.touch()  # marks the folder before the first trial has ended
        self._references = path / "references.jsonl"
        self._read()
        self.margin = self._fixed(margin)

    def _fixed(self, margin: float | None) -> float | None:
        """Return the margin that was set before the first trial ended."""
        file = self.path / "margin"
        kept = float(file.read_text(encoding="utf-8")) if file.exists() else None
        if margin is None or margin == kept:
            return kept
        if self.results:
            before = "none" if kept is None else f"a margin of {kept:g} nats"
            raise FedloraError(
                f"{self.path} holds {len(self.results)} trials and {before}: one that is set when "
                f"results are there proves nothing; leave --margin {margin:g} out, or give another "
                "--out"
            )
        replace_file(file, f"{margin!r}\n".encode())
        return margin

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from running the same trials, and read what they may have added before.

        Raises
        ------
        FedloraError
            When another comparison goes on in the folder.
        """
        with held_folder(self.path, "a comparison"):
            self._read()
            yield

    @property
    def finished(self) -> set[tuple[str, float, int]]:
        """Keys of the trials that are there."""
        return {
            (result.row["strategy"], result.row["snr_db"], result.row["seed"])
            for result in self.results
        }

    def _read(self) -> None:
        self.results = [_result(table) for table in read_lines(self._trials)[0]]
        self.references: dict[int, Losses] = {
            table["seed"]: table["losses"] for table in read_lines(self._references)[0]
        }

    def add(self, result: Result) -> None:
        """Keep a finished trial."""
        self.results.append(result)
        append_line(self._trials, asdict(result), sync=False)

    def add_reference(self, seed: int, losses: Losses) -> None:
        """Keep the reference of a seed."""
        self.references[seed] = losses
        append_line(self._references, {"seed": seed, "losses": losses}, sync=False)

    def write_csv(self) -> Path:
        """Write all finished trials, sorted, and return the file's path."""
        path = self.path / "compare.csv"
        rows = sorted(
            (result.row for result in self.results),
            key=lambda row: (row["strategy"], row["snr_db"], row["seed"]),
        )
        write_table(path, COLUMNS, rows)
        return path


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file whole."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, stream.getvalue().encode())


def _result(table: Mapping[str, Any]) -> Result:
    projections = [(layer, name) for layer, name in table["projections"]]
    complaints = table.get("complaints", [])
    return Result(table["row"], projections, table["mean_ranks"], table["trace"], complaints)
