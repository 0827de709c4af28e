"""How records become samples: special tokens, prompts, limits, and records that cannot be used."""

from __future__ import annotations

import pytest
from support.federation import LABELS

from fedlora.config import DataConfig, TaskConfig
from fedlora.errors import FedloraError
from fedlora.tasks import IGNORED, Classification, Sample, load_tokenizer
from fedlora.tasks.causal_lm import CausalLanguageModelling

PROMPT = DataConfig(prompt_separator="w5")


def language(folder, text: str, data: DataConfig = PROMPT, max_length: int = 16) -> list[Sample]:
    task = CausalLanguageModelling(TaskConfig(kind="causal_lm", max_length=max_length))
    return task.samples([{"text": text}], load_tokenizer(folder), data)


@pytest.mark.parametrize(
    ("family", "opening"), [("opt", [2]), ("gpt2", []), ("llama", [1])], ids=str
)
def test_text_begins_as_the_model_expects_and_ends_with_its_end_token(tiny, family, opening):
    """OPT begins a text with the very token that ends it, which must not be lost."""
    (sample,) = language(tiny[family], "w10 w11", DataConfig())
    assert list(sample.ids) == [*opening, 10, 11, 2]
    assert list(sample.target) == [*sample.ids[1:], IGNORED]


@pytest.mark.parametrize(("family", "opening"), [("opt", 1), ("gpt2", 0), ("llama", 1)])
def test_only_what_follows_the_prompt_is_trained_on(tiny, family, opening):
    (sample,) = language(tiny[family], "w10 w11 w5 w20 w5 w21")
    assert list(sample.ids[opening:]) == [10, 11, 5, 20, 5, 21, 2]
    assert list(sample.target[opening:]) == [IGNORED, IGNORED, 20, 5, 21, 2, IGNORED]
    assert list(sample.target[:opening]) == [IGNORED] * opening


def test_long_text_is_cut_and_a_text_that_is_all_prompt_is_left_out(tiny):
    (sample,) = language(tiny["opt"], "w10 w5 " + "w20 " * 40, max_length=8)
    assert list(sample.ids) == [2, 10, 5, 20, 20, 20, 20, 20]
    assert list(sample.target) == [IGNORED, IGNORED, 20, 20, 20, 20, 20, IGNORED]
    with pytest.raises(FedloraError, match="no record has a token to predict within"):
        language(tiny["opt"], "w10 " * 40 + "w5 w20", max_length=8)


def test_record_without_the_separator_is_named(tiny):
    with pytest.raises(FedloraError, match=r"^a record has no 'w5'"):
        language(tiny["opt"], "w10 w11")


def classify(folder, *records: dict[str, str], max_length: int = 16) -> list[Sample]:
    task = Classification(TaskConfig(max_length=max_length), LABELS)
    return task.samples(records, load_tokenizer(folder), DataConfig())


def test_class_is_the_place_of_its_label(tiny):
    records = [{"text": "w10", "label": label} for label in ("west", "north", "south")]
    samples = classify(tiny["bert"], *records)
    assert [sample.target for sample in samples] == [2, 0, 1]
    assert {sample.ids for sample in samples} == {(1, 10, 2)}


def test_closing_token_survives_the_cut(tiny):
    (sample,) = classify(tiny["bert"], {"text": "w10 " * 40, "label": "west"}, max_length=5)
    assert sample.ids == (1, 10, 10, 10, 2)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "w10", "label": "east"}, "^a record has label 'east', which is not among the 3"),
        ({"text": "w10"}, "has no 'label'"),
        ({"text": "  ", "label": "west"}, "^a record has text '  ', which has no token"),
    ],
)
def test_record_that_cannot_be_used_is_named_by_what_it_has_and_not_by_a_row_of_a_share(
    tiny, record, message
):
    with pytest.raises(FedloraError, match=message):
        classify(tiny["gpt2"], {"text": "w10", "label": "west"}, record)
