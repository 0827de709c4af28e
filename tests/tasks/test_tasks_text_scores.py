"""Scores of texts add up over clients, hold in any script, and are checked on arrival."""

from __future__ import annotations

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from fedlora.errors import ProtocolError
from fedlora.tasks import TextCounts

PAIRS = [
    ("the lamp is on in the red car now", "the lamp is off in the red car"),
    ("a fox and a dog sat on the old mat", "a fox and a cat sat on the mat"),
    ("", "nothing was written here"),
    ("equal  ", "equal"),
]


def test_sums_of_parts_give_what_the_libraries_say_of_the_whole():
    found = TextCounts.of(PAIRS[:1]) + TextCounts.of(PAIRS[1:])
    assert found == TextCounts.of(PAIRS) == TextCounts.from_dict(found.to_dict(), 4)
    written, references = zip(*PAIRS, strict=True)
    metrics = {metric.name: metric.value for metric in found.metrics()}
    rouge = RougeScorer(["rougeL"])
    of_each = [rouge.score(r, w)["rougeL"].fmeasure for w, r in PAIRS]
    assert metrics["rouge_l"] == pytest.approx(sum(of_each) / 4)
    assert metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, [references]).score)
    assert metrics["exact_match"] == 0.25


def test_words_of_other_scripts_count():
    found = TextCounts.of([("мама мыла раму", "мама мыла раму"), ("été", "hiver")])
    assert found.rouge_l == 1.0
    assert found.equal == 1


@pytest.mark.parametrize(
    "change",
    [
        {"texts": 5},
        {"texts": 0},
        {"equal": 5},
        {"rouge_l": 4.5},
        {"rouge_l": float("nan")},
        {"matches": [999, 0, 0, 0]},
        {"grams": [1, 2, 3]},
        {"words": -1},
        {"words": 1.5},
        {"more": 1},
    ],
)
def test_sums_that_no_texts_have_are_refused(change):
    with pytest.raises(ProtocolError):
        TextCounts.from_dict(TextCounts.of(PAIRS).to_dict() | change, 4)
