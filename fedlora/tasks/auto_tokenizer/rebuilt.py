"""Tokenizers that transformers builds anew from the vocabulary and the merges of a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from fedlora.errors import FedloraError

_WORD_MARK = "▁"
_ENDOFTEXT = "<|endoftext|>"
_S = {
    "bos": "<s>",
    "eos": "</s>",
    "sep": "</s>",
    "cls": "<s>",
    "unk": "<unk>",
    "pad": "<pad>",
    "mask": "<mask>",
}
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Content:
    """What is taken from ``tokenizer.json``, or from vocabulary files.

    Attributes
    ----------
    vocabulary, merges
        As the models of ``tokenizers`` take them; paths where there is no ``tokenizer.json``.
    charsmap
        SentencePiece's table of characters, where there is one.
    """

    vocabulary: Any
    merges: Any = None
    charsmap: bytes | None = None


@dataclass(frozen=True)
class Rebuilt:
    """How a class of tokenizers is built.

    Attributes
    ----------
    model
        Kind of its model.
    names
        Its special tokens where the settings are silent; None for none.
    build
        Makes the tokenizer of content and options, in which the names are filled in.
    files
        Names of its vocabulary files, where ``tokenizers`` reads them.
    finish
        Makes its post-processor of the tokenizer and the texts of its special tokens, once all of
        them are added; None leaves that of ``tokenizer.json``.
    adds_special
        Whether it adds its special tokens once more, as such.
    ends_plain
        Whether the template of begin and end counts, not what ``tokenizer.json`` says.
    """

    model: type[models.Model]
    names: Mapping[str, str | None]
    build: Callable[[Content, Options], Tokenizer]
    files: tuple[str, ...] = ()
    finish: Callable[[Tokenizer, Options, Mapping[str, str]], Any] | None = None
    adds_special: bool = False
    ends_plain: bool = False


def _byte_level_model(content: Content) -> Tokenizer:
    return Tokenizer(
        models.BPE(
            vocab=content.vocabulary,
            merges=content.merges or [],
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )


def _gpt2(content: Content, options: Options) -> Tokenizer:
    tokenizer = _byte_level_model(content)
    prefix = options.get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gpt_neox(content: Content, options: Options) -> Tokenizer:
    tokenizer = _byte_level_model(content)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=options.get("add_prefix_space", False),
        trim_offsets=options.get("trim_offsets", True),
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _qwen2(content: Content, options: Options) -> Tokenizer:
    tokenizer = _byte_level_model(content)
    prefix = options.get("add_prefix_space")
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(
                add_prefix_space=False if prefix is None else prefix, use_regex=False
            ),
        ]
    )
    return tokenizer


def _llama(content: Content, options: Options) -> Tokenizer:
    """Build it without an unknown token: characters that the vocabulary lacks are left out."""
    tokenizer = Tokenizer(
        models.BPE(
            vocab=content.vocabulary,
            merges=content.merges or [],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = options.get("add_prefix_space")
    scheme = "never"
    if prefix is None or prefix:
        scheme = "always" if options.get("legacy", False) else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_WORD_MARK, prepend_scheme=scheme, split=False
    )
    steps = [decoders.Replace(_WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if scheme != "never":
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _gemma(content: Content, options: Options) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            vocab=content.vocabulary,
            merges=content.merges or [],
            fuse_unk=True,
            unk_token=str(text_of(options["unk_token"])),
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.normalizer = normalizers.Replace(" ", _WORD_MARK)
    return tokenizer


def _bert(content: Content, options: Options) -> Tokenizer:
    unknown = str(text_of(options["unk_token"]))
    tokenizer = Tokenizer(models.WordPiece(content.vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _xlm_roberta(content: Content, options: Options) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(content.vocabulary, unk_id=3, byte_fallback=False))
    if content.charsmap is not None:
        tokenizer.normalizer = normalizers.Precompiled(content.charsmap)
    scheme = "always" if options.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=_WORD_MARK, prepend_scheme=scheme),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement=_WORD_MARK, prepend_scheme=scheme)
    return tokenizer


def _bert_ends(tokenizer: Tokenizer, options: Options, names: Mapping[str, str]) -> Any:
    del options
    cls, sep = str(names.get("cls_token")), str(names.get("sep_token"))
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[_end(tokenizer, cls, 2), _end(tokenizer, sep, 3)],
    )


def _roberta_ends(tokenizer: Tokenizer, options: Options, names: Mapping[str, str]) -> Any:
    cls, sep = names["cls_token"], names["sep_token"]
    return processors.RobertaProcessing(
        _end(tokenizer, sep),
        _end(tokenizer, cls),
        options.get("trim_offsets", True),
        options.get("add_prefix_space", False),
    )


def _xlm_roberta_ends(tokenizer: Tokenizer, options: Options, names: Mapping[str, str]) -> Any:
    del options
    bos, eos = names["bos_token"], names["eos_token"]
    return processors.TemplateProcessing(
        single=[bos, "$A", eos],
        pair=[bos, "$A", eos, eos, "$B", eos],
        special_tokens=[_end(tokenizer, bos), _end(tokenizer, eos)],
    )


def _end(tokenizer: Tokenizer, token: str, otherwise: int | None = None) -> tuple[str, int]:
    """Return a token that is put around a text, and its id."""
    number = tokenizer.token_to_id(token)
    number = otherwise if number is None else number
    if number is None:
        raise FedloraError(
            f"the tokenizer puts {token!r} around a text, but its settings name no such token; set "
            "cls_token and sep_token, or bos_token and eos_token, in tokenizer_config.json"
        )
    return token, number


def text_of(token: AddedToken | str | None) -> str | None:
    """Return the text of a token."""
    return token.content if isinstance(token, AddedToken) else token


_BPE_FILES = ("vocab.json", "merges.txt")
REBUILT: Mapping[str, Rebuilt] = {
    "GPT2Tokenizer": Rebuilt(
        models.BPE,
        {"unk": _ENDOFTEXT, "bos": _ENDOFTEXT, "eos": _ENDOFTEXT, "pad": None},
        _gpt2,
        _BPE_FILES,
    ),
    "GPTNeoXTokenizer": Rebuilt(
        models.BPE,
        {"unk": _ENDOFTEXT, "bos": _ENDOFTEXT, "eos": _ENDOFTEXT, "pad": "<|padding|>"},
        _gpt_neox,
        _BPE_FILES,
        ends_plain=True,
    ),
    "Qwen2Tokenizer": Rebuilt(
        models.BPE,
        {"unk": _ENDOFTEXT, "bos": None, "eos": _ENDOFTEXT, "pad": _ENDOFTEXT},
        _qwen2,
        _BPE_FILES,
        adds_special=True,
    ),
    "RobertaTokenizer": Rebuilt(models.BPE, _S, _gpt2, _BPE_FILES, _roberta_ends),
    "LlamaTokenizer": Rebuilt(models.BPE, {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}, _llama),
    "GemmaTokenizer": Rebuilt(
        models.BPE,
        {"unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "mask": "<mask>"},
        _gemma,
    ),
    "BertTokenizer": Rebuilt(
        models.WordPiece,
        {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
        _bert,
        ("vocab.txt",),
        _bert_ends,
    ),
    "XLMRobertaTokenizer": Rebuilt(models.Unigram, _S, _xlm_roberta, finish=_xlm_roberta_ends),
}
"""By class; the names in it are those of the keyword arguments, without ``_token``."""
