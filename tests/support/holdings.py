"""Who holds what, as a run's summary says it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fedlora.report import RunFolder


def add_holdings(folder: RunFolder, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Write into a run's summary how many rows of each label each client trains on."""
    summary = json.loads(folder.summary.read_text())
    folder.summary.write_text(json.dumps({**summary, "label_counts": counts}))
