"""What the last evaluation came to in full: every metric, and who was taken for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedlora.checks import finite
from fedlora.server.evaluation import Evaluation
from fedlora.tasks import Counts, Task
from fedlora.tasks.metrics import ClassificationCounts


def counts_of(round_: int, evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as a checkpoint holds it."""
    counts = {client: own.to_dict() for client, own in evaluation.counts.items()}
    return {"round": round_, "counts": counts}


def metrics_of(counts: Counts | None) -> dict[str, float | None]:
    """Return the metrics of counts by name; None for what is no finite number."""
    if counts is None:
        return {}
    return {metric.name: finite(metric.value) for metric in counts.metrics()}


def full_evaluation(
    evaluated: Mapping[str, Any] | None, task: Task, labels: Sequence[str]
) -> dict[str, Any] | None:
    """Return what ``evaluation.json`` holds: of all held-out rows, and by client.

    Parameters
    ----------
    evaluated
        See ``counts_of``.
    task
        Reads counts.
    labels
        Names of the classes.
    """
    if evaluated is None or not evaluated["counts"]:
        return None
    own = {client: task.read_counts(value) for client, value in evaluated["counts"].items()}
    total: Counts | None = None
    for counts in own.values():
        total = counts if total is None else total + counts
    return {
        "round": evaluated["round"],
        "labels": list(labels),
        "all": _told(total),
        "clients": {client: _told(counts) for client, counts in own.items()},
    }


def _told(counts: Counts | None) -> dict[str, Any]:
    assert counts is not None
    told: dict[str, Any] = {"rows": counts.samples, "metrics": metrics_of(counts)}
    if isinstance(counts, ClassificationCounts):
        told["confusion"] = [list(row) for row in counts.confusion]
    return told
