"""What the last evaluation came to in full: every metric, and who was taken for whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fedlora.checks import finite
from fedlora.report import mean
from fedlora.server.evaluation import Evaluation
from fedlora.tasks import ClassificationCounts, Counts, ScoreCounts, Task, TextCounts


def counts_of(round_: int, evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as a checkpoint holds it."""
    counts = {client: own.to_dict() for client, own in evaluation.counts.items()}
    scores = {client: own.to_dict() for client, own in evaluation.scores.items()}
    texts = {client: own.to_dict() for client, own in evaluation.texts.items()}
    return {"round": round_, "counts": counts, "scores": scores, "texts": texts}


def metrics_of(
    counts: Counts | None,
    scores: Iterable[ScoreCounts] = (),
    texts: Iterable[TextCounts] = (),
) -> dict[str, float | None]:
    """Return the metrics of counts by name; None for what is no finite number.

    Parameters
    ----------
    counts
        Counts of held-out rows.
    scores
        Histograms of their scores, which are added up; with them ``auc`` is the mean over classes.
    texts
        Sums over texts that were written on after held-out prompts, which are added up.
    """
    if counts is None:
        return {}
    found = {metric.name: finite(metric.value) for metric in counts.metrics()}
    added = _sum(scores)
    if added is not None:
        found["auc"] = mean([a.value for k in range(len(added.own)) if (a := added.area(k))])
    written = _sum(texts)
    for metric in () if written is None else written.metrics():
        found[metric.name] = finite(metric.value)
    return found


Summed = TypeVar("Summed", ScoreCounts, TextCounts)


def _sum(parts: Iterable[Summed]) -> Summed | None:
    total: Summed | None = None
    for own in parts:
        total = own if total is None else total + own
    return total


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
    scores = {
        client: ScoreCounts.from_dict(value, len(value["own"]), own[client].samples)
        for client, value in (evaluated.get("scores") or {}).items()
    }
    texts = {
        client: TextCounts.from_dict(value, own[client].samples)
        for client, value in (evaluated.get("texts") or {}).items()
    }
    by_client = {c: _told(counts, scores.get(c), texts.get(c), labels) for c, counts in own.items()}
    return {
        "round": evaluated["round"],
        "labels": list(labels),
        "all": _told(total, _sum(scores.values()), _sum(texts.values()), labels),
        "clients": by_client,
    }


def _told(
    counts: Counts | None,
    scores: ScoreCounts | None,
    texts: TextCounts | None,
    labels: Sequence[str],
) -> dict[str, Any]:
    assert counts is not None
    own = () if scores is None else (scores,)
    written = () if texts is None else (texts,)
    metrics = metrics_of(counts, own, written)
    told: dict[str, Any] = {"rows": counts.samples, "metrics": metrics}
    if texts is not None:
        told["texts"] = texts.texts
    if isinstance(counts, ClassificationCounts):
        told["confusion"] = [list(row) for row in counts.confusion]
    if scores is not None:
        areas = {_name(labels, k): scores.area(k) for k in range(len(scores.own))}
        told["auc"] = {name: area and dataclasses.asdict(area) for name, area in areas.items()}
        told["auc_absent"] = [name for name, area in areas.items() if area is None]
    return told


def _name(labels: Sequence[str], k: int) -> str:
    return labels[k] if k < len(labels) else str(k)
