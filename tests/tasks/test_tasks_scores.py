"""Areas under ROC curves from histograms of scores are those of the scores, within what is told."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import mannwhitneyu

from fedlora.errors import ProtocolError
from fedlora.tasks import ScoreCounts
from fedlora.tasks.scores import BINS


def drawn(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 3, (rows,), generator=generator)
    logits = 3 * torch.randn(rows, 4, generator=generator)
    logits[torch.arange(rows), truth] += 2
    return logits, truth


def test_an_area_is_the_one_of_all_scores_within_its_resolution():
    logits, truth = drawn(400, 1)
    parts = [ScoreCounts.of(logits[i::3], truth[i::3].tolist()) for i in range(3)]
    whole = ScoreCounts.of(logits, truth.tolist())
    assert parts[0] + parts[1] + parts[2] == whole
    chances = logits.double().softmax(1)
    for k in range(3):
        own, rest = chances[truth == k, k].numpy(), chances[truth != k, k].numpy()
        exact = mannwhitneyu(own, rest).statistic / (len(own) * len(rest))
        found = whole.area(k)
        assert abs(found.value - exact) <= found.resolution < 0.01
        assert 0.5 < found.value < 1
    assert whole.area(3) is None  # of which there is no row


def test_scores_beyond_all_bins_and_rows_of_no_class_count():
    logits = torch.tensor([[1e9, 0.0], [0.0, 1e9], [float("nan"), 0.0], [0.0, 0.0]])
    found = ScoreCounts.of(logits, [0, 1, -1, 0])
    assert [sum(row) for row in found.own] == [2, 1]
    assert [sum(row) for row in found.rest] == [2, 3]
    assert ScoreCounts.from_dict(found.to_dict(), 2, 4) == found
    assert ScoreCounts.of(logits[:2], [0, 1]).area(0).value == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("own"), "exactly the fields"),
        (lambda t: t["own"].pop(), "no 2 x 128 table"),
        (lambda t: t["rest"][0].append(0), "no 2 x 128 table"),
        (lambda t: t["own"][0].__setitem__(3, -1), "is no count"),
        (lambda t: t["own"][0].__setitem__(3, True), "is no count"),
        (lambda t: t["own"][0].__setitem__(3, 1.0), "is no count"),
        (lambda t: t["own"][0].__setitem__(3, 9), "not of the 2 rows"),
        (lambda t: t.update(own=t["rest"], rest=t["own"]), "more than one class"),
    ],
)
def test_histograms_that_are_none_are_refused(change, message):
    table = ScoreCounts.of(torch.eye(2), [-1, -1]).to_dict()
    assert len(table["own"][0]) == BINS
    change(table)
    with pytest.raises(ProtocolError, match=message):
        ScoreCounts.from_dict(table, 2, 2)
