"""Making the tokenizer of a folder."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, processors

from fedlora.errors import FedloraError
from fedlora.tasks.auto_tokenizer.classes import AS_A_MEND, AS_IT_STANDS, class_of
from fedlora.tasks.auto_tokenizer.rebuilt import REBUILT, Content, Rebuilt, text_of
from fedlora.tasks.auto_tokenizer.settings import (
    NAMES,
    Token,
    read_settings,
    read_table,
    special_tokens,
)
from fedlora.tasks.chat import ChatTemplates

_OPENAI_FILES = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}


@dataclass(frozen=True)
class AutoTokenizer:
    """What ``AutoTokenizer`` of transformers makes of a folder.

    Attributes
    ----------
    backend
        The tokenizer, without padding and truncation.
    names
        Text of each special token (``bos``, ``eos`` and so on), or None.
    truncation_side
        At which end a text that is too long loses its tokens: ``right`` or ``left``.
    chat
        Its chat templates.
    """

    backend: Tokenizer
    names: Mapping[str, str | None]
    truncation_side: str
    chat: ChatTemplates


def load_auto_tokenizer(folder: Path) -> AutoTokenizer:
    """Make the tokenizer of a folder with ``tokenizer.json``, or with vocabulary files.

    Raises
    ------
    FedloraError
        When there is none, a file is damaged, or it is of a class that is not built here.
    """
    config = read_table(folder / "config.json")
    text = _read_text(folder / "tokenizer.json")
    document = None if text is None else json.loads(text)
    settings = read_settings(folder, document)
    name = class_of(
        str(config.get("model_type", "")),
        settings.get("tokenizer_class"),
        config.get("tokenizer_class"),
        text,
    )
    kind = REBUILT.get(name)
    if kind is None and name != AS_IT_STANDS:
        raise FedloraError(
            f"the tokenizer in {folder} is of transformers' class {name!r}, which is not built "
            f"here; {AS_A_MEND}"
        )
    if text is None and (kind is None or _files(folder, kind) is None):
        raise _no_tokenizer(folder)
    if kind is None:
        assert text is not None
        backend, processor = Tokenizer.from_str(text), None
    else:
        settings = {**{f"{name}_token": token for name, token in kind.names.items()}, **settings}
        backend, processor = _rebuild(folder, kind, document, settings)
    if getattr(backend.model, "dropout", None):
        raise FedloraError(
            f"{folder / 'tokenizer.json'} has dropout {backend.model.dropout:g}, with which a text "
            "has other tokens each time; set it to null there"
        )
    side = _stored_ends(settings, document or {})
    if processor is not None:
        backend.post_processor = processor
    names = _finish(backend, settings, kind)
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = bool(settings.get("split_special_tokens", False))
    return AutoTokenizer(backend, names, side, ChatTemplates.read(folder, settings, names))


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _rebuild(
    folder: Path, kind: Rebuilt, document: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> tuple[Tokenizer, Any]:
    """Return the tokenizer of a class, and the post-processor that ``tokenizer.json`` holds."""
    if document is None:
        files = [str(file) for file in _files(folder, kind) or ()]
        return kind.build(Content(files[0], files[1] if files[1:] else None), settings), None
    model = document["model"]
    vocabulary: Any = model.get("vocab")
    merges = None
    if isinstance(vocabulary, list):
        if kind.model is models.Unigram:
            vocabulary = [tuple(entry) for entry in vocabulary]
        else:
            texts = [entry[0] if isinstance(entry, list) else entry for entry in vocabulary]
            vocabulary = {token: number for number, token in enumerate(texts)}
    if kind.model is models.BPE:
        pairs = model.get("merges") or ()
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]
    content = Content(vocabulary, merges, _charsmap(document.get("normalizer")))
    return kind.build(content, settings), _post_processor(document)


def _post_processor(document: Mapping[str, Any]) -> Any:
    model = dict(document["model"])
    if model.get("type") not in (None, "Unigram"):  # of which the vocabulary plays no part
        model |= {"vocab": {}} | ({"merges": []} if model["type"] == "BPE" else {})
        document = {**document, "model": model, "added_tokens": []}
    return Tokenizer.from_str(json.dumps(document)).post_processor


def _charsmap(normalizer: Any) -> bytes | None:
    steps = [normalizer] if normalizer else []
    if normalizer and normalizer.get("type") == "Sequence":
        steps = normalizer["normalizers"]
    for step in steps:
        if step.get("type") == "Precompiled" and "precompiled_charsmap" in step:
            return base64.b64decode(step["precompiled_charsmap"])
    return None


def _stored_ends(settings: dict[str, Any], document: Mapping[str, Any]) -> str:
    """Return where texts are cut; fill in the padding token that ``tokenizer.json`` stores."""
    if document.get("padding"):
        settings.setdefault("pad_token", document["padding"]["pad_token"])
    stored = document.get("truncation") or {}
    side = settings.get("truncation_side", str(stored.get("direction", "right")).lower())
    if side not in ("right", "left"):
        raise FedloraError(
            f"tokenizer_config.json sets 'truncation_side' to {side!r}; write 'right' or 'left'"
        )
    return str(side)


def _finish(
    backend: Tokenizer, settings: Mapping[str, Any], kind: Rebuilt | None
) -> Mapping[str, str | None]:
    """Add the tokens of the settings and make the post-processor; return the special tokens."""
    ends = {end: settings.get(f"add_{end}_token") for end in ("bos", "eos")}
    told = any(f"add_{end}_token" in settings for end in ends)
    named, extra = special_tokens(settings)
    _add(backend, settings["added_tokens_decoder"], list(named.values()), extra)
    texts = {name: str(text_of(token)) for name, token in named.items()}
    if told or backend.post_processor is None or (kind is not None and kind.ends_plain):
        backend.post_processor = _template(backend, texts, ends)
    if kind is not None and kind.adds_special:
        special = dict.fromkeys([*texts.values(), *(str(text_of(token)) for token in extra)])
        backend.add_tokens([AddedToken(token, special=True) for token in special])
    if kind is not None and kind.finish is not None:
        backend.post_processor = kind.finish(backend, settings, texts)
    return {name: texts.get(f"{name}_token") for name in NAMES}


def _add(
    backend: Tokenizer, decoder: Mapping[int, AddedToken], named: list[Token], extra: list[Token]
) -> None:
    """Add the tokens that the backend has not yet, in the order of transformers."""
    there = backend.get_added_tokens_decoder()
    known = {repr(token) for token in there.values()}
    tokens: list[Token] = [
        token for _, token in sorted(decoder.items()) if repr(token) not in known
    ]
    texts = {text_of(token) for token in (*there.values(), *tokens)}
    for token in (*named, *extra):
        if text_of(token) not in texts and token not in tokens:  # one of other flags is added again
            tokens.append(token)
    names = {text_of(token) for token in named}
    added = [AddedToken(t, special=True) if isinstance(t, str) else t for t in tokens]
    for token in added:
        token.special = token.special or token.content in names
    backend.add_tokens(added)


def _template(
    backend: Tokenizer, names: Mapping[str, str], wanted: Mapping[str, Any]
) -> processors.TemplateProcessing:
    """Return the post-processor that puts begin and end around a text, where wanted."""
    bos = names.get("bos_token") if wanted["bos"] else None
    eos = names.get("eos_token") if wanted["eos"] else None
    single = f"{bos + ':0 ' if bos else ''}$A:0{' ' + eos + ':0' if eos else ''}"
    pair = f"{single}{' ' + bos + ':1' if bos else ''} $B:1{' ' + eos + ':1' if eos else ''}"
    ends = [(token, backend.token_to_id(token)) for token in (bos, eos) if token]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)


def _files(folder: Path, kind: Rebuilt) -> list[Path] | None:
    """Return the vocabulary files of a class, also under OpenAI's names; None where one lacks."""
    for names in (kind.files, [_OPENAI_FILES.get(name, name) for name in kind.files]):
        files = [folder / name for name in names]
        if files and all(file.exists() for file in files):
            return files
    return None


def _no_tokenizer(folder: Path) -> FedloraError:
    names = ("tokenizer.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
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
