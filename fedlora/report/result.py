"""What came of a run, for Python and for notebooks."""

from __future__ import annotations

import base64
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from fedlora.checks import finite
from fedlora.config import Scenario, load_scenario
from fedlora.errors import FedloraError
from fedlora.report.records import RoundRecord
from fedlora.report.rows import headline, result_rows
from fedlora.report.run_folder import RunFolder

_SHOWN = ("learning", "traffic")


class RunResult:
    """A run's figures and files. A notebook shows it as a table with its plots.

    Parameters
    ----------
    path
        The run's folder.

    Attributes
    ----------
    path
        The run's folder.

    Raises
    ------
    FedloraError
        When the folder holds no run.
    """

    def __init__(self, path: Path | str) -> None:
        self._folder = RunFolder(Path(path).expanduser().resolve())
        self.path = self._folder.path
        if not self._folder.scenario.is_file():
            raise FedloraError(f"{path} holds no run; name a run folder")

    @cached_property
    def scenario(self) -> Scenario:
        """The scenario as it was resolved."""
        return load_scenario(self._folder.scenario)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The final figures, as ``summary.json`` has them; empty where no round was finished."""
        return self._folder.read_summary() or {}

    @cached_property
    def rounds(self) -> list[RoundRecord]:
        """The rounds in order, as ``metrics.jsonl`` has them."""
        return self._folder.read_metrics()

    @property
    def metric(self) -> float | None:
        """The held-out metric that the run ended with, None where there was no evaluation."""
        return finite(self.summary.get("metric"))

    @property
    def metric_name(self) -> str:
        """What ``metric`` is: ``accuracy`` or ``perplexity``, or what a task of one's own says."""
        return str(self.summary.get("metric_name") or "metric")

    @property
    def adapter(self) -> Path:
        """Folder of the adapter, as ``peft.PeftModel.from_pretrained`` takes it."""
        return self._folder.adapter

    @property
    def report(self) -> Path:
        """The report page, which holds everything that it shows."""
        return self._folder.report

    @property
    def plots(self) -> dict[str, Path]:
        """The plots by name, as PNG."""
        return {path.stem: path for path in sorted(self._folder.plots.glob("*.png"))}

    def __repr__(self) -> str:
        """Say in a sentence what the run came to, and where it is."""
        return f"<{headline(self.summary)} {self.path}>"

    def _repr_html_(self) -> str:
        """Return the result table and the first plots, for IPython; nothing lies elsewhere."""
        rows = [row for group in result_rows(self.summary) for row in group]
        cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
        table = "".join(f"<tr>{row}</tr>" for row in cells)
        images = (
            f'<img alt="{name}" src="data:image/png;base64,'
            f'{base64.b64encode(self.plots[name].read_bytes()).decode()}">'
            for name in _SHOWN
            if name in self.plots
        )
        return f"<p><b>{escape(headline(self.summary))}</b></p><table>{table}</table>" + "".join(
            images
        )
