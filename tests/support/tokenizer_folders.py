"""Folders of tokenizers of all kinds, with settings that ``tokenizer.json`` may not agree with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind it at all. 123 4567",
    "A menu for the café: two coffees, ten croissants, one sentence that goes on and on.",
    "naïve Über-straße 日本語 テスト 🤗",
] * 3
ODD_TEXTS = [
    "",
    "  ",
    "The café's menu, 2 for £10!",
    "  leading and  double  spaces\n\nand lines\t",
    "émigré 日本語 \u2028 🤗 zzz e\u0301 o\u0308\u0323",
    "<s>inner</s> [MASK] <|endoftext|> <pad><mask> <unk> [UNK] [CARD] X[CARD]Y  [CARD]  z [SOFT]",
    "a long sentence that goes on and on " * 20,
    "\u0001\ufffd\u00ad 中文字符 ＡＢ \u200d",
    "don't CAPS İstanbul ŒUVRE [card] CARD",
]
_GPT = ("<|endoftext|>",)
_S = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
_ARCHITECTURES = [
    "gpt2",
    "opt",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "bert",
    "roberta",
    "gpt_neox",
    "xlm-roberta",
    "granite",
    "falcon",
]
_ANY_CLASS = ("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer", None)
_CLASSES = {
    "byte level": [
        "GPT2Tokenizer",
        "GPT2TokenizerFast",
        "Qwen2Tokenizer",
        "Qwen2TokenizerFast",
        "RobertaTokenizer",
        "RobertaTokenizerFast",
        "GPTNeoXTokenizerFast",
        "LlamaTokenizerFast",
    ],
    "sentence pieces": [
        "LlamaTokenizer",
        "LlamaTokenizerFast",
        "GemmaTokenizer",
        "GemmaTokenizerFast",
    ],
    "word pieces": [
        "BertTokenizer",
        "BertTokenizerFast",
        "DistilBertTokenizer",
        "ElectraTokenizerFast",
    ],
    "unigram": ["XLMRobertaTokenizer", "XLMRobertaTokenizerFast"],
    "words": ["PreTrainedTokenizerFast"],
}
_OPTIONS: dict[str, list[Any]] = {
    "do_lower_case": [True, False],
    "strip_accents": [True, False, None],
    "tokenize_chinese_chars": [True, False],
    "add_prefix_space": [True, False],
    "legacy": [True, False, None],
    "add_bos_token": [True, False],
    "add_eos_token": [True, False],
    "trim_offsets": [True, False],
    "truncation_side": ["left", "right"],
    "padding_side": ["left", "right"],
    "split_special_tokens": [True, False],
    "clean_up_tokenization_spaces": [True, False],
    "model_max_length": [512],
    "sp_model_kwargs": [{}],
    "image_token": ["[IMG]"],
    "additional_special_tokens": [["[EX]"], ["[CARD]"], []],
    "extra_special_tokens": [["[E2]"], {"audio_token": "[AUD]"}, [], None],
}


def byte_level(special: tuple[str, ...], rng: random.Random) -> Tokenizer:
    """Return a byte-level BPE as of GPT-2."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=rng.random() < 0.3)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(made, trainers.BpeTrainer, special, vocab_size=400, initial_alphabet=alphabet)


def sentence_pieces(special: tuple[str, ...], rng: random.Random) -> Tokenizer:
    """Return a BPE with word marks as of Llama 2, with or without bytes to fall back on."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if rng.random() < 0.5:
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(steps)
    else:
        scheme = rng.choice(["always", "first", "never"])
        made.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme=scheme, split=rng.random() < 0.5
        )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps)
    if rng.random() < 0.5:
        special = (*special, *(f"<0x{byte:02X}>" for byte in range(256)))
    return _trained(made, trainers.BpeTrainer, special, vocab_size=200 + len(special))


def word_pieces(special: tuple[str, ...], rng: random.Random) -> Tokenizer:
    """Return word pieces as of BERT."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(
        lowercase=rng.random() < 0.5, strip_accents=rng.choice([None, True, False])
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return _trained(made, trainers.WordPieceTrainer, special, vocab_size=200)


def unigram(special: tuple[str, ...], rng: random.Random) -> Tokenizer:
    """Return a unigram model as of XLM-R."""
    made = Tokenizer(models.Unigram())
    scheme = rng.choice(["always", "first", "never"])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    made.normalizer = rng.choice([None, normalizers.NFKC()])
    made.decoder = decoders.Metaspace()
    return _trained(made, trainers.UnigramTrainer, special, vocab_size=150, unk_token="<unk>")


def words(special: tuple[str, ...], rng: random.Random) -> Tokenizer:
    """Return whole words."""
    del rng
    made = Tokenizer(models.WordLevel(unk_token=special[-1]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _trained(made, trainers.WordLevelTrainer, special)


_KINDS: dict[str, tuple[Callable[..., Tokenizer], tuple[tuple[str, ...], ...]]] = {
    "byte level": (byte_level, (_GPT, _S)),
    "sentence pieces": (sentence_pieces, (_S, _GEMMA)),
    "word pieces": (word_pieces, (_BERT,)),
    "unigram": (unigram, (_S,)),
    "words": (words, (_S, _BERT)),
}


def _trained(made: Tokenizer, trainer: Any, special: tuple[str, ...], **options: Any) -> Tokenizer:
    made.train_from_iterator(
        CORPUS, trainer(special_tokens=list(special), show_progress=False, **options)
    )
    return made


def draw_folder(folder: Path, seed: int) -> None:
    """Write the folder of a number: kind, architecture, class, settings and tokens are drawn."""
    rng = random.Random(seed)
    folder.mkdir()
    kind = rng.choice(list(_KINDS))
    make, sets = _KINDS[kind]
    special = rng.choice(sets)
    made = make(special, rng)
    made.post_processor = _post_processor(made, special, rng)
    if rng.random() < 0.3:
        made.enable_truncation(4, direction=rng.choice(["left", "right"]))
    if rng.random() < 0.3:
        made.enable_padding(length=32, pad_token=rng.choice([special[0], "[PAD]"]))
    for text in ("[CARD]", "[SOFT]"):
        if rng.random() < 0.4:
            made.add_tokens([AddedToken(text, special=rng.random() < 0.5, **_flags(rng))])
    settings = _settings(made, kind, special, rng)
    size = made.get_vocab_size()
    beside = {
        "added_tokens.json": [{"[CARD]": size}, {"[AT]": size}, {special[-1]: 1, "[AT]": 999}],
        "special_tokens_map.json": [
            {"bos_token": special[0], "additional_special_tokens": ["[SM]"]},
            {"unk_token": {"content": special[-1], **_flags(rng)}},
            {"extra_special_tokens": {"x_token": "[SX]"}},
        ],
    }
    for name, contents in beside.items():
        if rng.random() < 0.2:
            (folder / name).write_text(json.dumps(rng.choice(contents)))
    if rng.random() < 0.85:
        made.save(str(folder / "tokenizer.json"))
    else:
        made.model.save(str(folder))
    config = {"model_type": rng.choice(_ARCHITECTURES)}
    if rng.random() < 0.1:
        config["tokenizer_class"] = rng.choice(_CLASSES[kind])
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _post_processor(made: Tokenizer, special: tuple[str, ...], rng: random.Random) -> Any:
    first, last = ((token, made.token_to_id(token)) for token in (special[0], special[-1]))

    def template(single: str) -> processors.TemplateProcessing:
        return processors.TemplateProcessing(
            single=single, pair="$A $B", special_tokens=[first, last]
        )

    steps = [processors.ByteLevel(trim_offsets=True), template(f"{first[0]} $A {last[0]}")]
    return rng.choice(
        [
            None,
            template(f"{first[0]} $A"),
            template(f"{first[0]} $A {last[0]} {first[0]}"),
            processors.ByteLevel(trim_offsets=True),
            processors.RobertaProcessing(last, first),
            processors.BertProcessing(last, first),
            processors.Sequence(steps),
        ]
    )


def _settings(
    made: Tokenizer, kind: str, special: tuple[str, ...], rng: random.Random
) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if chosen := rng.choice([*_ANY_CLASS, *_CLASSES[kind] * 2]):
        settings["tokenizer_class"] = chosen
    for name in ("bos", "eos", "unk", "pad", "cls", "sep", "mask"):
        if rng.random() < 0.35:
            text = rng.choice([special[0], special[-1], "[NEW]"])
            table = {"__type": "AddedToken", "content": text, "special": True, **_flags(rng)}
            settings[f"{name}_token"] = rng.choice([text, text, table, None])
    settings |= {
        name: rng.choice(values) for name, values in _OPTIONS.items() if rng.random() < 0.15
    }
    if rng.random() < 0.3:
        tokens = {}
        for number, token in made.get_added_tokens_decoder().items():
            flags = {name: getattr(token, name) for name in _flags(rng)}
            if rng.random() < 0.3:
                flags = _flags(rng)
            tokens[str(number)] = {"content": token.content, "special": token.special, **flags}
        if rng.random() < 0.3:
            tokens[str(made.get_vocab_size() + 5)] = {"content": "[DEC]", **_flags(rng)}
        settings["added_tokens_decoder"] = tokens
    return settings


def _flags(rng: random.Random) -> dict[str, bool]:
    names = ("lstrip", "rstrip", "single_word", "normalized")
    return {name: rng.random() < 0.4 for name in names}
