"""Tokenizers of models whose folder has vocabulary files instead of ``tokenizer.json``.

They are built as transformers builds them: byte-level BPE for GPT-2, OPT and RoBERTa, WordPiece for
BERT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
)

from fedlora.errors import FedloraError

Names = Mapping[str, str | None]

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_GPT2 = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
_ROBERTA = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "</s>",
    "pad": "<pad>",
    "cls": "<s>",
    "mask": "<mask>",
}
_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_CLASS_OF_MODEL = {
    "gpt2": "GPT2Tokenizer",
    "opt": "GPT2Tokenizer",
    "roberta": "RobertaTokenizer",
    "bert": "BertTokenizer",
}


def special_names(settings: Mapping[str, Any], defaults: Mapping[str, str]) -> Names:
    """Return the text of each special token (``bos``, ``eos`` and so on), or None.

    Parameters
    ----------
    settings
        Contents of ``tokenizer_config.json``, which gives a token as a string or as a table.
    defaults
        Tokens that hold where the settings are silent.
    """

    def content(token: Any) -> str | None:
        text = token.get("content") if isinstance(token, Mapping) else token
        return text if isinstance(text, str) else None

    return {name: content(settings.get(f"{name}_token", defaults.get(name))) for name in _SPECIAL}


def build_tokenizer(
    folder: Path, model_type: str, settings: Mapping[str, Any]
) -> tuple[Tokenizer, Names]:
    """Build a tokenizer from vocabulary files.

    Parameters
    ----------
    folder
        Folder with ``vocab.json`` and ``merges.txt`` (also under OpenAI's names ``encoder.json``
        and ``vocab.bpe``), or ``vocab.txt``.
    model_type
        Hugging Face's name of the architecture; it decides where the settings name no tokenizer.
    settings
        Contents of ``tokenizer_config.json``.

    Returns
    -------
    tuple
        The tokenizer, and the texts of its special tokens.

    Raises
    ------
    FedloraError
        When the files are missing, or of a model that is not known here.
    """
    kind = settings.get("tokenizer_class") or _CLASS_OF_MODEL.get(model_type, "")
    kind = str(kind).removesuffix("Fast")
    if kind == "GPT2Tokenizer" and (files := _bpe_files(folder)):
        names = special_names(settings, _GPT2)
        tokenizer = _byte_level_bpe(*files, settings)
        opening = names["bos"] if settings.get("add_bos_token") else None
        closing = names["eos"] if settings.get("add_eos_token") else None
    elif kind == "RobertaTokenizer" and (files := _bpe_files(folder)):
        names = special_names(settings, _ROBERTA)
        tokenizer = _byte_level_bpe(*files, settings)
        opening, closing = names["cls"], names["sep"]
    elif kind == "BertTokenizer" and (folder / "vocab.txt").exists():
        names = special_names(settings, _BERT)
        tokenizer = _word_piece(folder / "vocab.txt", settings, str(names["unk"]))
        opening, closing = names["cls"], names["sep"]
    else:
        raise _no_tokenizer(folder)
    tokenizer.add_tokens(_added_tokens(folder, settings, names))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[token for token in (opening, "$A", closing) if token is not None],
        special_tokens=[
            (token, tokenizer.token_to_id(token))
            for token in dict.fromkeys((opening, closing))
            if token is not None
        ],
    )
    return tokenizer, names


def _bpe_files(folder: Path) -> tuple[Path, Path] | None:
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        vocabulary, merges = (folder / name for name in names)
        if vocabulary.exists() and merges.exists():
            return vocabulary, merges
    return None


def _byte_level_bpe(vocabulary: Path, merges: Path, settings: Mapping[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE.from_file(
            str(vocabulary), str(merges), continuing_subword_prefix="", end_of_word_suffix=""
        )
    )
    prefix = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_piece(vocabulary: Path, settings: Mapping[str, Any], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece.from_file(str(vocabulary), unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _added_tokens(folder: Path, settings: Mapping[str, Any], names: Names) -> list[AddedToken]:
    """Return the tokens that are found in a text before it is split, in the order of their ids."""
    added = {}
    decoder: Mapping[str, Any] = settings.get("added_tokens_decoder", {})
    for _, token in sorted(decoder.items(), key=lambda item: int(item[0])):
        added[token["content"]] = _added(token, special=token.get("special", False))
    file = folder / "added_tokens.json"
    if not added and file.exists():
        numbers = json.loads(file.read_text(encoding="utf-8"))
        special = set(names.values())
        for text in sorted(numbers, key=numbers.__getitem__):
            added[text] = AddedToken(text, special=text in special, normalized=text not in special)
    for name, text in names.items():
        if text is not None and text not in added:
            token = settings.get(f"{name}_token")
            table = token if isinstance(token, Mapping) else {"content": text, "normalized": False}
            added[text] = _added(table, special=True)
    return list(added.values())


def _added(table: Mapping[str, Any], *, special: bool) -> AddedToken:
    flags = ("lstrip", "rstrip", "single_word", "normalized")
    return AddedToken(
        table["content"], special=special, **{flag: table[flag] for flag in flags if flag in table}
    )


def _no_tokenizer(folder: Path) -> FedloraError:
    names = ("tokenizer.model", "vocab.json", "vocab.txt")
    found = [name for name in names if (folder / name).exists()]
    if found:
        return FedloraError(
            f"{folder} has {' and '.join(found)} but no tokenizer.json, which this model needs; "
            f"write it once with AutoTokenizer.from_pretrained({str(folder)!r})"
            f".save_pretrained({str(folder)!r}) of transformers"
        )
    return FedloraError(
        f"{folder} has no tokenizer; copy tokenizer.json there from where the model came from"
    )
