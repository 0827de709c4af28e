"""Counts add up exactly, their metrics follow the textbook, and a peer cannot smuggle nonsense."""

from __future__ import annotations

import json
import math
from functools import reduce
from operator import add

import numpy as np
import pytest

from fedlora.errors import FedloraError, ProtocolError
from fedlora.tasks import ClassificationCounts
from fedlora.tasks.metrics import LanguageCounts


def _values(counts: ClassificationCounts | LanguageCounts) -> dict[str, float]:
    return {metric.name: metric.value for metric in counts.metrics()}


def test_classification_metrics_equal_their_definitions():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    predicted[::2] = true[::2]
    counts = ClassificationCounts.from_predictions(predicted.tolist(), true.tolist(), 5, 12.5)
    scores = []
    for k in range(5):
        precision = np.mean(true[predicted == k] == k)
        recall = np.mean(predicted[true == k] == k)
        scores.append(2 * precision * recall / (precision + recall))
    values = _values(counts)
    assert values["accuracy"] == pytest.approx(np.mean(true == predicted))
    assert values["macro_f1"] == pytest.approx(np.mean(scores))
    assert values["loss"] == pytest.approx(12.5 / 300)


def test_classification_metrics_equal_scikit_learn():
    oracle = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    true, predicted = rng.integers(0, 3, 50).tolist(), rng.integers(1, 6, 50).tolist()
    counts = ClassificationCounts.from_predictions(predicted, true, 8, 1.0)
    assert counts.accuracy == pytest.approx(oracle.accuracy_score(true, predicted))
    expected = oracle.f1_score(true, predicted, average="macro", zero_division=0)
    assert counts.macro_f1 == pytest.approx(expected)


def test_classes_that_never_occur_do_not_lower_macro_f1():
    assert ClassificationCounts.from_predictions([0, 1], [0, 1], 4, 0.0).macro_f1 == 1.0
    assert ClassificationCounts.from_predictions([0, 2], [0, 1], 4, 0.0).macro_f1 == (
        pytest.approx(1 / 3)
    )


def test_merged_clients_give_the_metrics_of_all_samples_together():
    rng = np.random.default_rng(2)
    true, predicted = rng.integers(0, 3, 100).tolist(), rng.integers(0, 3, 100).tolist()
    whole = ClassificationCounts.from_predictions(predicted, true, 3, 100.0)
    parts = [
        ClassificationCounts.from_predictions(predicted[a:b], true[a:b], 3, float(b - a))
        for a, b in ((0, 1), (1, 40), (40, 100))
    ]
    assert reduce(add, parts, ClassificationCounts.zero(3)) == whole


def test_merged_perplexity_weighs_tokens_and_not_clients():
    short, long = LanguageCounts(2.0, 1, 0, 1), LanguageCounts(9.0, 9, 6, 2)
    values = _values(short + long)
    assert values["perplexity"] == pytest.approx(math.exp(11 / 10))
    assert values["token_accuracy"] == pytest.approx(0.6)
    assert (short + long).samples == 3


def test_every_metric_says_which_direction_is_better():
    counts = ClassificationCounts.from_predictions([0], [0], 2, 0.1)
    assert [(m.name, m.higher_is_better) for m in counts.metrics()] == [
        ("accuracy", True),
        ("macro_f1", True),
        ("loss", False),
    ]
    assert [(m.name, m.higher_is_better) for m in LanguageCounts(1.0, 1, 0, 1).metrics()] == [
        ("perplexity", False),
        ("loss", False),
        ("token_accuracy", True),
    ]


def test_perplexity_beyond_a_float_is_infinite():
    assert LanguageCounts(1e6, 1, 0, 1).perplexity == math.inf


def test_counts_survive_json():
    first = ClassificationCounts.from_predictions([0, 1, 1], [0, 1, 0], 2, 0.25)
    second = LanguageCounts(1.5, 7, 3, 2)
    assert ClassificationCounts.from_dict(json.loads(json.dumps(first.to_dict())), 2) == first
    assert LanguageCounts.from_dict(json.loads(json.dumps(second.to_dict()))) == second


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"confusion": [[1, 0], [0, 1]]},
        {"confusion": [[1, 0], [0, 1]], "loss": 1.0, "extra": 1},
        {"confusion": [[1]], "loss": 1.0},
        {"confusion": [[1, 0], [0]], "loss": 1.0},
        {"confusion": [1, 0], "loss": 1.0},
        {"confusion": [[1, 0], [0, -1]], "loss": 1.0},
        {"confusion": [[1, 0], [0, 0.5]], "loss": 1.0},
        {"confusion": [[1, 0], [0, True]], "loss": 1.0},
        {"confusion": [[1, 0], [0, 10**30]], "loss": 1.0},
        {"confusion": [[1, 0], [0, 1]], "loss": math.nan},
        {"confusion": [[1, 0], [0, 1]], "loss": math.inf},
        {"confusion": [[1, 0], [0, 1]], "loss": 10**400},
        {"confusion": [[1, 0], [0, 1]], "loss": -1.0},
        {"confusion": [[1, 0], [0, 1]], "loss": "1"},
        {"confusion": [[0, 0], [0, 0]], "loss": 1.0},
    ],
)
def test_invalid_classification_counts_from_a_peer_are_refused(value):
    with pytest.raises(ProtocolError):
        ClassificationCounts.from_dict(value, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": -1},
        {"tokens": 2.0},
        {"correct": 5},
        {"samples": 5},
        {"loss": math.nan},
        {"tokens": 0, "correct": 0, "samples": 0},
        {"other": 1},
    ],
)
def test_invalid_language_counts_from_a_peer_are_refused(change):
    valid = {"loss": 1.0, "tokens": 4, "correct": 2, "samples": 1}
    assert LanguageCounts.from_dict(valid).tokens == 4
    with pytest.raises(ProtocolError):
        LanguageCounts.from_dict({**valid, **change})


@pytest.mark.parametrize("empty", [ClassificationCounts.zero(3), LanguageCounts()])
def test_metrics_of_nothing_are_an_error_and_not_a_number(empty):
    with pytest.raises(FedloraError, match="nothing was evaluated"):
        empty.metrics()
