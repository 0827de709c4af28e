"""Statistics of a text are what counting by hand gives, and differ between dialects."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import stdev

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from clients.build import load_parts
from clients.simulated_data import SimulatedData
from clients.text_statistics import text_statistics, token_surprisals
from fedlora.config import with_overrides
from fedlora.ranks import DataStatistics
from fedlora.scenarios import find_scenario
from fedlora.tasks import Sample, Tokenizer, load_tokenizer

QUICKSTART = Path(__file__).parents[2] / "simulations" / "quickstart"
DIALECTS = ["partition.kind=column", "partition.column=dialect"]
BLOCK = 64


def digits(value: float) -> float:
    """Round to three significant digits, by another way than the code."""
    return round(value, 2 - math.floor(math.log10(abs(value))))


def words_tokenizer(tokens: list[str]) -> Tokenizer:
    """Return a tokenizer of whole words whose ids are their places in the list."""
    backend = tokenizers.Tokenizer(
        models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token=tokens[0])
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, (1,), (2,), 1, 2, None, 0, len(tokens), digest="")


MARKS = ["<unk>", "<s>", "</s>", "[unused0]"]
WORDS = words_tokenizer([*MARKS, "a", "b", *(f"w{n}" for n in range(1, 101))])
FIRST = len(MARKS) + 2  # the id of w1
HARMONIC = sum(1 / k for k in range(1, 101)) + 1 + 1 / 2  # of the words, and of "a" and "b"


def sample(*ids: int) -> Sample:
    return Sample((1, *ids, 2), 0)


@pytest.fixture(scope="module")
def dialects() -> list[tuple[list[str], list[Sample], Tokenizer]]:
    """Texts and samples of the eight dialect clients of the offline default."""
    scenario = with_overrides(find_scenario("quickstart"), DIALECTS)
    data = SimulatedData(scenario, 8)
    parts = load_parts(scenario, data.labels)
    found = []
    for client in range(8):
        rows = data.rows_of(client)[0]
        samples = parts.model.task.samples(rows, parts.tokenizer, scenario.data)
        found.append(([row["text"] for row in rows], samples, parts.tokenizer))
    return found


def counted(texts: list[str]) -> DataStatistics:
    """Work the statistics out from the texts, with the decoder's files alone."""
    file = QUICKSTART / "decoder" / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.no_truncation()
    by_id = sorted(json.loads(file.read_text())["model"]["vocab"].items(), key=lambda item: item[1])
    kept = [token for token, _ in by_id if token not in ("<pad>", "<s>", "</s>", "<unk>")]
    places = {}
    for group in ([t for t in kept if len(t) == 1], [t for t in kept if len(t) > 1]):
        places |= {token: place for place, token in enumerate(group, 1)}
    total = sum(1 / place for place in places.values())
    rows = [backend.encode(text, add_special_tokens=False).tokens for text in texts]
    tokens = [token for row in rows for token in row]
    counts = Counter(tokens)
    surprisal = -sum(
        count * math.log2(1 / places[token] / total) for token, count in counts.items()
    ) / len(tokens)
    edges = range(0, len(tokens) + 1, BLOCK)
    ratios = [len(Counter(tokens[a:b])) / BLOCK for a, b in pairwise(edges)]
    return DataStatistics(
        digits(surprisal),
        digits(sum(ratios) / len(ratios)),
        digits(len(tokens) / sum(len(text.split()) for text in texts)),
        digits(len(tokens) / len(rows)),
    )


def test_the_statistics_of_dialects_are_those_that_counting_gives(dialects):
    for texts, samples, tokenizer in dialects:
        assert text_statistics(samples, tokenizer) == counted(texts)


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("token_surprisal", 4.0),
        ("type_token_ratio", 4.0),
        ("pieces_per_word", 2.0),
        ("mean_length", 4.0),
    ],
)
def test_dialects_differ_more_than_the_halves_of_one(dialects, name, times):
    def told(samples: list[Sample], tokenizer: Tokenizer) -> float:
        return float(text_statistics(samples, tokenizer).told()[name])

    between = stdev(told(samples, tokenizer) for _, samples, tokenizer in dialects)
    halves = [
        told(samples[::2], tokenizer) - told(samples[1::2], tokenizer)
        for _, samples, tokenizer in dialects
    ]
    within = math.sqrt(sum(gap**2 for gap in halves) / len(halves) / 2)  # of half a client's rows
    assert between > times * within


def test_they_do_not_depend_on_how_much_text_there_is(dialects):
    for _, samples, tokenizer in dialects:
        once, thrice = (text_statistics(samples * n, tokenizer).told() for n in (1, 3))
        assert thrice == pytest.approx(once, rel=0.01)


@pytest.mark.parametrize("place", [1, 2, 50, 100])
def test_the_surprisal_of_one_word_is_that_of_its_place(place):
    found = text_statistics([sample(FIRST - 1 + place)], WORDS)
    assert found.token_surprisal == digits(math.log2(place * HARMONIC))


def test_surprisals_are_of_frequencies_that_add_up_to_one():
    table = token_surprisals(WORDS)
    assert sum(2.0 ** -table[len(MARKS) : -1]) == pytest.approx(1.0)
    assert list(table[:4]) == [table[-1]] * 4 == [max(table)] * 4  # marks are as rare as the rarest
    assert table[4] == table[FIRST]  # the first single character is as frequent as the first word


def test_an_id_beyond_the_vocabulary_is_as_rare_as_the_rarest():
    found = text_statistics([sample(9999)], WORDS)
    assert found.token_surprisal == digits(math.log2(100 * HARMONIC))


@pytest.mark.parametrize(
    ("ids", "ratio"),
    [
        ([FIRST] * 64, 1 / 64),
        (range(FIRST, FIRST + 64), 1.0),
        ([*range(FIRST, FIRST + 64), *[FIRST] * 64], (1 + 1 / 64) / 2),
        ([*range(FIRST, FIRST + 64), *[FIRST] * 63], 1.0),  # what is left over does not count
        (range(FIRST, FIRST + 63), None),
    ],
)
def test_types_a_token_are_of_whole_windows(ids, ratio):
    found = text_statistics([sample(*ids[:40]), sample(*ids[40:])], WORDS)  # they run on
    assert found.type_token_ratio == (digits(ratio) if ratio else None)


def test_special_tokens_are_no_part_of_a_text():
    assert text_statistics([sample(FIRST, FIRST + 1), sample(FIRST)], WORDS).mean_length == 1.5
    assert text_statistics([sample()], WORDS) == DataStatistics(mean_length=0.0)


def test_pieces_a_word_count_what_a_word_falls_into(dialects):
    tokenizer = load_tokenizer(QUICKSTART / "decoder")
    text = "turn the unfathomable kitchen light off"
    ids = tokenizer.encode(text, 100)
    found = text_statistics([Sample(tuple(ids), 0)], tokenizer)
    assert found.pieces_per_word == digits((len(ids) - 1) / 6)  # less the opening
    assert found.pieces_per_word > 1.5
