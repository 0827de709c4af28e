from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy.stats import binomtest

from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms import RandomisedLabels, flip_probability, label_auc
from fedlora.privacy.mechanisms.randomised_response import randomise
from fedlora.storage import journal

NAMES = ["maybe", "off", "on"]


@pytest.mark.parametrize("classes", [2, 4, 77])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0, 50.0])
def test_the_likelihood_ratio_of_any_two_labels_is_the_exponential_of_epsilon(
    classes: int, epsilon: float
) -> None:
    flip = flip_probability(classes, epsilon)
    assert math.log1p(-flip) - math.log(flip / (classes - 1)) == pytest.approx(epsilon)


@pytest.mark.parametrize(("classes", "epsilon"), [(2, 1.0), (5, 2.0)])
def test_labels_are_drawn_with_these_probabilities(classes: int, epsilon: float) -> None:
    draws, label = 20_000, 1
    counts = [0] * classes
    for _ in range(draws):
        counts[randomise(label, classes, epsilon)] += 1
    flip = flip_probability(classes, epsilon)
    for other, count in enumerate(counts):
        chance = 1 - flip if other == label else flip / (classes - 1)
        assert binomtest(count, draws, chance).pvalue > 1e-9


def test_a_label_is_drawn_once_for_good(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    truth = {sample: sample % 3 for sample in range(500)}
    first = RandomisedLabels(path, NAMES, 0.5).draw(truth)
    assert first != truth
    again = RandomisedLabels(path, NAMES, 0.5)
    assert again.draw(dict.fromkeys(truth, 0)) == first
    assert again.missing([*truth, 1000]) == {1000}
    more = again.draw(truth | {1000: 2})
    assert {sample: more[sample] for sample in truth} == first
    assert RandomisedLabels(path, NAMES, 0.5).draw({1000: 0}) == {1000: more[1000]}


@pytest.mark.parametrize("classes", [2, 3, 20])
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_the_auc_is_that_of_the_likelihood_ratio(classes: int, epsilon: float) -> None:
    flip = flip_probability(classes, epsilon)
    own = [1 - flip] + [flip / (classes - 1)] * (classes - 1)
    other = [own[1], own[0], *own[2:]]
    score = [a / b for a, b in zip(own, other, strict=True)]
    places = range(classes)
    auc = sum(
        own[i] * other[j] * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
        for i in places
        for j in places
    )
    assert label_auc(classes, epsilon) == pytest.approx(auc)
    assert label_auc(classes, epsilon) <= label_auc(2, epsilon) + 1e-12


def test_drawing_again_at_another_epsilon_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    RandomisedLabels(path, NAMES, 0.5).draw({1: 2})
    with pytest.raises(FedloraError, match=r"drawn at epsilon 0\.5, not 8; keep that setting"):
        RandomisedLabels(path, NAMES, 8.0)


def test_a_label_keeps_its_class_where_the_classes_come_in_another_order(tmp_path: Path) -> None:
    path, truth = tmp_path / "labels", {sample: sample % 3 for sample in range(60)}
    drawn = RandomisedLabels(path, NAMES, 0.5).draw(truth)
    other = ["on", "maybe", "off"]
    again = RandomisedLabels(path, other, 0.5).draw(dict.fromkeys(truth, 0))
    assert {s: other[k] for s, k in again.items()} == {s: NAMES[k] for s, k in drawn.items()}
    # and what is drawn from then on is kept with the earlier ones, by the same names
    more = RandomisedLabels(path, other, 0.5).draw({1000: 1})
    last = RandomisedLabels(path, NAMES, 0.5).draw(dict.fromkeys([*truth, 1000], 0))
    assert NAMES[last[1000]] == other[more[1000]]
    assert {sample: last[sample] for sample in truth} == drawn


@pytest.mark.parametrize(
    ("names", "column", "message"),
    [
        (["maybe", "off", "yes"], "klasse", "of which only one side has 'on', 'yes'; keep that"),
        (["off", "on"], "klasse", "drawn for 3 classes, not for these 2, of which only one side"),
        (NAMES, "topic", "drawn for the column 'klasse', not 'topic'; keep that setting"),
    ],
)
def test_labels_of_other_classes_or_another_column_are_refused(
    tmp_path: Path, names: list[str], column: str, message: str
) -> None:
    path = tmp_path / "labels"
    RandomisedLabels(path, NAMES, 0.5, column="klasse").draw({1: 2})
    before = path.read_bytes()
    with pytest.raises(FedloraError, match=message):
        RandomisedLabels(path, names, 0.5, column=column)
    assert path.read_bytes() == before


def test_a_file_without_class_names_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    old = {"format": "fedlora-randomised-labels/1", "classes": 3, "epsilon": 0.5}
    path.write_bytes(journal.encode(old | {"labels": [[1, 2]]}))
    before = path.read_bytes()
    with pytest.raises(FedloraError, match="do not say which classes they stand for"):
        RandomisedLabels(path, NAMES, 0.5)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FedloraError, match=r"cannot read .*: Is a directory; mend the disk or"):
        RandomisedLabels(tmp_path, ["a", "b"], 2.0)


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: "", lambda text: 2 * text])
def test_a_damaged_file_is_refused(tmp_path: Path, damage) -> None:
    path = tmp_path / "labels"
    RandomisedLabels(path, NAMES, 0.5).draw({1: 2, 2: 0})
    path.write_text(damage(path.read_text()))
    with pytest.raises(FedloraError, match="are damaged; restore them"):
        RandomisedLabels(path, NAMES, 0.5)


@pytest.mark.parametrize(
    ("label", "classes", "epsilon", "message"),
    [
        (0, 1, 1.0, "1 classes leave no label"),
        (2, 2, 1.0, "label 2 is not among 2 classes"),
        (-2, 2, 1.0, "label -2 is not among"),
        (0, 2, 0.0, "epsilon is 0"),
    ],
)
def test_wrong_values_are_refused(label: int, classes: int, epsilon: float, message: str) -> None:
    with pytest.raises(FedloraError, match=message):
        randomise(label, classes, epsilon)
