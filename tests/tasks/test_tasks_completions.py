"""A text is encoded once and whole; what is trained on are the tokens of its completion."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support.tokenizer_folders import byte_level, sentence_pieces, unigram, word_pieces
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from fedlora.config import DataConfig, TaskConfig
from fedlora.errors import FedloraError
from fedlora.tasks import IGNORED, Sample, load_tokenizer
from fedlora.tasks.causal_lm import CausalLanguageModelling

S = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = (
    *(" ", "  ", "\n", "\n\n", "\t", "\u00a0"),
    *(
        "the",
        "dog",
        "over",
        "The",
        "é",
        "e\u0301",
        "\u0301",
        "日本",
        "語",
        "🤗",
        "ﬁ",
        "Ａ",
        "İ",
        "\u0001",
    ),
    *("<s>", "</s>", "[CARD]", "9", "£", "\u200d"),
)
SEPARATORS = ("A:", "A: ", " A:", ":", "\n", "🤗", "e", "</s>", "日")
TOKENIZERS = {
    "byte-level": byte_level,
    "sentence-pieces": sentence_pieces,
    "word-pieces": word_pieces,
    "unigram": unigram,
}


def write(folder: Path, made: Tokenizer, **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def encode(folder: Path, text: str, separator: str, max_length: int = 10_000) -> list[Sample]:
    task = CausalLanguageModelling(TaskConfig(kind="causal_lm", max_length=max_length))
    data = DataConfig(prompt_separator=separator)
    return task.samples([{"text": text}], load_tokenizer(folder), data)


def trained(sample: Sample) -> list[int]:
    """Return the places of the tokens that are predicted."""
    assert isinstance(sample.target, tuple)
    return [n + 1 for n, target in enumerate(sample.target) if target != IGNORED]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("seed", range(6))
def test_what_is_trained_on_holds_a_character_of_the_completion(tmp_path, name, seed):
    """The reference: ids and places of the whole text by transformers, told apart by characters."""
    rng = random.Random(seed)
    made = TOKENIZERS[name](BERT if name == "word-pieces" else S, rng)
    made.add_tokens(["[CARD]"])
    eos = "[SEP]" if name == "word-pieces" else "</s>"
    folder = write(tmp_path / "model", made, eos_token=eos)
    oracle = AutoTokenizer.from_pretrained(folder)
    for _ in range(60):
        separator = rng.choice(SEPARATORS)
        words = [*rng.choices(PIECES, k=rng.randint(0, 6)), separator]
        text = "".join([*words, *rng.choices(PIECES, k=rng.randint(0, 6))])
        whole = oracle(text, return_offsets_mapping=True, add_special_tokens=False)
        border = text.index(separator) + len(separator)
        places = whole["offset_mapping"]
        first = min(
            (n for n, place in enumerate(places) if any(c >= border for c in range(*place))),
            default=len(places),
        )
        ids = [*whole["input_ids"], oracle.eos_token_id]
        if len(ids) == 1:  # there is nothing before the end token that could predict it
            with pytest.raises(FedloraError, match="no record has a token to predict"):
                encode(folder, text, separator)
            continue
        (sample,) = encode(folder, text, separator)
        assert list(sample.ids) == ids, text
        assert trained(sample) == list(range(max(1, first), len(ids))), text


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_completion_gains_no_space_that_the_text_does_not_have(tmp_path, scheme):
    characters = ["<unk>", "</s>", "▁", *"abcA:", "▁a", "▁b"]
    pairs = [("▁", "a"), ("▁", "b")]
    made = Tokenizer(models.BPE({c: n for n, c in enumerate(characters)}, pairs, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    folder = write(tmp_path / "model", made, eos_token="</s>")
    (sample,) = encode(folder, "b A:cab", "A:")
    names = [characters[number] for number in sample.ids]
    start = ["b"] if scheme == "never" else ["▁b"]
    assert names == [*start, "▁", "A", ":", "c", "a", "b", "</s>"]
    assert trained(sample) == [4, 5, 6, 7]


def test_a_token_that_straddles_the_border_is_trained_on(tmp_path):
    made = Tokenizer(models.BPE({"</s>": 0, "a": 1, ":": 2, "b": 3, ":b": 4}, [(":", "b")]))
    folder = write(tmp_path / "model", made, eos_token="</s>")
    (sample,) = encode(folder, "a:ba", ":")
    assert (sample.ids, sample.target) == ((1, 4, 1, 0), (4, 1, 0, IGNORED))


@pytest.mark.parametrize("trims", [True, False])
def test_spaces_that_a_post_processor_cuts_off_a_token_are_still_its_own(tmp_path, trims):
    made = byte_level(S, random.Random(1))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=trims)
    folder = write(tmp_path / "model", made, eos_token="</s>")
    (sample,) = encode(folder, "x:  x", ":")
    names = [made.id_to_token(number) for number in sample.ids]
    assert names in (["x", ":", "Ġ", "Ġ", "x", "</s>"], ["x", ":", "Ġ", "Ġx", "</s>"])
    assert trained(sample)[0] == 2


def test_border_tokens_that_do_not_merge_are_those_of_the_parts(tmp_path):
    """So it is with byte-level tokenizers, whose runs trained the same before and after."""
    made = byte_level(S, random.Random(1))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = write(tmp_path / "model", made, eos_token="</s>")
    tokenizer = load_tokenizer(folder)
    for prompt, completion in (("the dog. A:", " cat jumps"), ("Q?\n", "the dog"), ("a ||", "b")):
        parts = [tokenizer.encode(part, 99, special=False) for part in (prompt, completion)]
        (sample,) = encode(folder, prompt + completion, prompt[-2:])
        assert list(sample.ids) == [*parts[0], *parts[1], 2]
        assert trained(sample)[0] == len(parts[0])


@pytest.mark.parametrize("left", [True, False])
def test_a_long_text_loses_its_tokens_where_the_model_says(tmp_path, left):
    made = Tokenizer(models.BPE({"</s>": 0, "<s>": 1, ":": 2, **{c: ord(c) for c in "abcdef"}}, []))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    side = "left" if left else "right"
    folder = write(tmp_path / "model", made, eos_token="</s>", truncation_side=side)
    (sample,) = encode(folder, "abc:def", ":", 6)
    if left:
        assert sample.ids == (1, 2, *map(ord, "def"), 0)
        assert trained(sample) == [2, 3, 4, 5]
    else:
        assert sample.ids == (1, *map(ord, "abc"), 2, ord("d"))
        assert trained(sample) == [5]
