"""What is made of a folder is what ``AutoTokenizer`` makes of it, whatever its files say."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support.tokenizer_folders import (
    ODD_TEXTS,
    byte_level,
    draw_folder,
    sentence_pieces,
    word_pieces,
)
from tokenizers import AddedToken, Tokenizer, models, processors
from transformers import AutoTokenizer
from transformers.models.auto import tokenization_auto

from fedlora.errors import FedloraError
from fedlora.tasks import load_tokenizer
from fedlora.tasks.auto_tokenizer import load_auto_tokenizer
from fedlora.tasks.auto_tokenizer.classes import AS_IT_STANDS, OVERRULED, REGISTERED, canonical

DRAWS = 120
"""Folders that are drawn; about a fifth of them transformers or fedlora refuses."""


def serialised(backend):
    table = json.loads(backend.to_str())
    return {name: part for name, part in table.items() if name not in ("padding", "truncation")}


def assert_alike(folder: Path, oracle) -> None:
    """Hold serialisation, ids, cuts and places against those of transformers."""
    assert serialised(load_auto_tokenizer(folder).backend) == serialised(oracle.backend_tokenizer)
    ours = load_tokenizer(folder)
    ends = oracle.num_special_tokens_to_add()
    for text in ODD_TEXTS:
        assert ours.encode(text, 10**6) == oracle(text).input_ids, text
        bare = oracle(text, add_special_tokens=False).input_ids
        assert ours.encode(text, 10**6, special=False) == bare, text
        for most in filter(None, (ends, ends + 1, ends + 7)):
            cut = oracle(text, truncation=True, max_length=most).input_ids
            assert ours.encode(text, most) == cut, (text, most)
    for name in ("bos", "eos", "pad", "unk"):
        if getattr(oracle, f"{name}_token") is not None:
            assert getattr(ours, f"{name}_id") == getattr(oracle, f"{name}_token_id")
    assert ours.vocab_size == len(oracle)


def refusal(folder: Path) -> str:
    try:
        ours = load_tokenizer(folder)
        [ours.encode(text, 10**6) for text in ODD_TEXTS]
    except FedloraError as error:
        return str(error)
    return ""


def is_sound(folder: Path) -> bool:
    try:
        oracle = AutoTokenizer.from_pretrained(folder)
        [oracle(text) for text in ODD_TEXTS]
    except Exception:
        return False
    return True


def test_drawn_folders_give_the_tokenizer_of_transformers_or_a_refusal(tmp_path):
    """What transformers takes is refused only where vocabulary files lack."""
    alike = 0
    for seed in range(DRAWS):
        folder = tmp_path / str(seed)
        draw_folder(folder, seed)
        if said := refusal(folder):
            assert "\n" not in said
            assert not (folder / "tokenizer.json").exists() or not is_sound(folder), said
        else:
            assert_alike(folder, AutoTokenizer.from_pretrained(folder))
            alike += 1
    assert alike > DRAWS * 0.6


def test_classes_are_those_that_transformers_registers():
    known = tokenization_auto.TOKENIZER_MAPPING_NAMES
    theirs = {name: known.get(name) for name in REGISTERED}
    assert {n: c if c is None else canonical(c) for n, c in theirs.items()} == REGISTERED
    incorrect = tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert {name for name in incorrect if known[name] != AS_IT_STANDS} == OVERRULED


def write(folder: Path, made, config, settings) -> Path:
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def rng():
    return random.Random(0)


BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
S = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@pytest.mark.parametrize("cased", [True, False])
def test_a_corrected_case_counts(tmp_path, rng, cased):
    made = word_pieces(BERT, rng)
    folder = write(tmp_path, made, {"model_type": "bert"}, {"do_lower_case": not cased})
    upper, lower = (load_tokenizer(folder).encode(text, 99) for text in ("THE DOG", "the dog"))
    assert (upper != lower) == cased
    assert_alike(folder, AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("prefix", [True, False])
def test_a_prefix_space_that_the_settings_say_counts(tmp_path, rng, prefix):
    made = byte_level(("<|endoftext|>",), rng)
    folder = write(tmp_path, made, {"model_type": "gpt2"}, {"add_prefix_space": prefix})
    bare, spaced = (load_tokenizer(folder).encode(text, 99) for text in ("the dog", " the dog"))
    assert (bare == spaced) == prefix
    assert_alike(folder, AutoTokenizer.from_pretrained(folder))


def test_a_token_of_added_tokens_json_alone_is_one_token(tmp_path, rng):
    made = byte_level(S, rng)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folder = write(tmp_path, made, {"model_type": "llama"}, settings)
    (folder / "added_tokens.json").write_text(json.dumps({"[CARD]": made.get_vocab_size()}))
    assert made.get_vocab_size() in load_tokenizer(folder).encode("a [CARD]", 99)
    assert_alike(folder, AutoTokenizer.from_pretrained(folder))


def test_llamas_class_leaves_out_what_its_vocabulary_lacks(tmp_path, rng):
    made = sentence_pieces(S, rng)
    folder = write(tmp_path, made, {"model_type": "llama"}, {"tokenizer_class": "LlamaTokenizer"})
    assert load_tokenizer(folder).encode("dog\u9999", 99) == load_tokenizer(folder).encode(
        "dog", 99
    )
    assert_alike(folder, AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("left", [True, False])
def test_a_long_text_is_cut_where_the_files_say(tmp_path, rng, left):
    made = byte_level(S, rng)
    made.enable_truncation(3, direction="left" if left else "right")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folder = write(tmp_path, made, {"model_type": "gpt2"}, settings)
    tokenizer = load_tokenizer(folder)
    whole = tokenizer.encode(ODD_TEXTS[2], 99)
    assert tokenizer.encode(ODD_TEXTS[2], 5) == (whole[-5:] if left else whole[:5])
    other = write(tmp_path, made, {"model_type": "gpt2"}, {**settings, "truncation_side": "right"})
    assert load_tokenizer(other).encode(ODD_TEXTS[2], 5) == whole[:5]
    assert (load_tokenizer(other).digest != tokenizer.digest) == left


def test_special_tokens_that_are_to_be_split_are_split(tmp_path, rng):
    made = byte_level(S, rng)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
    folder = write(tmp_path, made, {"model_type": "gpt2"}, settings)
    assert 2 not in load_tokenizer(folder).encode("a</s>", 99)
    digest = load_tokenizer(folder).digest
    settings["split_special_tokens"] = False
    assert load_tokenizer(write(tmp_path, made, {}, settings)).digest != digest


def test_a_vocabulary_without_any_letter_is_asked_for_its_ends_without_one(tmp_path):
    made = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "1": 2, "12": 3, "2": 4}, [("1", "2")]))
    made.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folder = write(tmp_path, made, {"model_type": "llama"}, settings)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.opening, tokenizer.closing) == ((0, 0), (1,))
    assert tokenizer.encode("12", 9) == [0, 0, 3, 1]
    assert tokenizer.encode("abc", 9) == [0, 0, 1]


def test_a_template_with_a_text_twice_is_refused(tmp_path, rng):
    made = byte_level(S, rng)
    made.post_processor = processors.TemplateProcessing(single="$A $A", special_tokens=[])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folder = write(tmp_path, made, {"model_type": "llama"}, settings)
    with pytest.raises(FedloraError, match=r"has a text 2 times .*mend the template"):
        load_tokenizer(folder)


def test_a_tokenizer_that_drops_merges_at_random_is_refused(tmp_path):
    made = Tokenizer(models.BPE({"a": 0, "aa": 1}, [("a", "a")], dropout=0.25))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folder = write(tmp_path, made, {"model_type": "llama"}, settings)
    with pytest.raises(FedloraError, match=r"has dropout 0\.25, .* set it to null"):
        load_tokenizer(folder)
    settings["tokenizer_class"] = "GPT2Tokenizer"  # which takes vocabulary and merges alone
    folder = write(tmp_path, made, {"model_type": "gpt2"}, settings)
    assert_alike(folder, AutoTokenizer.from_pretrained(folder))


def test_a_vocabulary_without_its_unknown_token_cannot_encode_and_says_so(tmp_path):
    made = Tokenizer(models.WordLevel({"dog": 0}, unk_token="[UNK]"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer = load_tokenizer(write(tmp_path, made, {"model_type": "llama"}, settings))
    assert tokenizer.encode("dog", 9) == [0]
    with pytest.raises(FedloraError, match=r"cannot encode a text \(.*UNK.*\); mend its files"):
        tokenizer.encode("cat", 9)


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("llama", {"tokenizer_class": "CodeLlamaTokenizer"}, r"class 'CodeLlamaTokenizer', which"),
        ("bert", {"tokenizer_class": "BertJapaneseTokenizer"}, r"'BertJapaneseTokenizer'.*write"),
        ("nosuch", {"tokenizer_class": "GPT2Tokenizer"}, r"model_type 'nosuch' is not known here"),
        ("nosuch", {}, r"model_type 'nosuch'.*PreTrainedTokenizerFast.*as it stands"),
        ("llama", {"auto_map": {"AutoTokenizer": ["a.B", None]}}, r"code of its own in 'auto_map'"),
        ("llama", {"fast_tokenizer_files": ["tokenizer.4.0.json"]}, "'fast_tokenizer_files'"),
        ("llama", {"fix_mistral_regex": True}, "sets 'fix_mistral_regex', which is not supported"),
        ("llama", {"bos_token": ["<s>"]}, r"sets 'bos_token' to \['<s>'\], which is no token"),
        ("llama", {"truncation_side": "middle"}, "sets 'truncation_side' to 'middle'"),
        ("bert", {"do_lower_case": "no"}, r"the tokenizer in .* cannot be read"),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_name(tmp_path, rng, model_type, settings, message):
    folder = write(tmp_path, word_pieces(BERT, rng), {"model_type": model_type}, settings)
    with pytest.raises(FedloraError, match=message) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_the_mend_for_another_class_gives_the_file_to_both_as_it_stands(tmp_path, rng):
    made = word_pieces(BERT, rng)
    made.add_tokens([AddedToken("[CARD]", lstrip=True)])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for model_type in ("nosuch", "llama", "bert"):
        folder = write(tmp_path, made, {"model_type": model_type}, settings)
        assert serialised(load_auto_tokenizer(folder).backend)["model"] == serialised(made)["model"]
        assert_alike(folder, AutoTokenizer.from_pretrained(folder))
