"""What stands beside ``tokenizer.json``, merged as transformers merges it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from fedlora.errors import FedloraError

NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""What the named special tokens are for, in the order in which transformers adds them."""

Token = AddedToken | str

_ELSEWHERE = (
    "vocab",
    "merges",
    "tokenizer_object",
    "post_processor",
    "tokenizer_truncation",
    "tokenizer_padding",
    "gguf_file",
    "fix_mistral_regex",
)
"""Settings by which transformers takes another tokenizer than that of the files."""


def read_table(path: Path) -> dict[str, Any]:
    """Return the table of a JSON file; empty where there is no file.

    Raises
    ------
    FedloraError
        When it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise FedloraError(f"{path} cannot be read ({error}); copy it anew") from None
    if not isinstance(value, dict):
        raise FedloraError(f"{path} holds no table; copy it anew")
    return value


def read_settings(folder: Path, document: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a tokenizer, as transformers hands them to its class.

    Parameters
    ----------
    folder
        The model's folder.
    document
        Content of ``tokenizer.json``; None where there is none.

    Returns
    -------
    dict
        ``tokenizer_config.json``, with ``special_tokens_map.json`` and ``added_tokens.json`` where
        these count. ``added_tokens_decoder`` holds tokens by id, ``extra_special_tokens`` a list,
        and ``model_specific_special_tokens`` further tokens by name.

    Raises
    ------
    FedloraError
        When a file is damaged, or names code or files that are not read here.
    """
    path = folder / "tokenizer_config.json"
    settings = read_table(path)
    for name in _ELSEWHERE:
        if settings.get(name):
            raise FedloraError(f"{path} sets {name!r}, which is not supported; take it out")
    code = settings.get("auto_map")
    if isinstance(code, list) or (isinstance(code, dict) and "AutoTokenizer" in code):
        raise FedloraError(
            f"{path} names code of its own in 'auto_map', which is not run; take it out, if the "
            "tokenizer is right without"
        )
    if set(settings.get("fast_tokenizer_files") or ()) - {"tokenizer.json"}:
        raise FedloraError(
            f"{path} names several files in 'fast_tokenizer_files'; take it out, and keep the "
            "right one as tokenizer.json"
        )
    if document is not None:  # whose post-processor says it
        settings.pop("add_bos_token", None)
        settings.pop("add_eos_token", None)
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    specific = _specific_tokens(settings)
    if specific:
        settings["model_specific_special_tokens"] = specific
    by_text = _add_tokens(settings, folder, document)
    settings = {name: _with_tokens(value) for name, value in settings.items()}
    for name in (f"{name}_token" for name in NAMES):
        if settings.get(name) is not None:
            settings[name] = by_text.get(_text(settings[name]), settings[name])
    return settings


def special_tokens(settings: Mapping[str, Any]) -> tuple[dict[str, Token], list[Token]]:
    """Return the special tokens that have names, by name and in order, and the others.

    Raises
    ------
    FedloraError
        When one is no token.
    """
    named: dict[str, Token] = {}
    standard = [f"{name}_token" for name in NAMES]
    specific = [name for name in settings if name.endswith("_token") and name not in standard]
    found = {name: settings.get(name) for name in standard}
    found |= {name: settings[name] for name in specific if _is_token(settings[name])}
    found |= settings.get("model_specific_special_tokens", {})
    extra = settings.get("extra_special_tokens")
    if "extra_special_tokens" not in settings:
        extra = settings.get("additional_special_tokens")
    if isinstance(extra, dict):
        found |= extra
        extra = None
    for name, token in found.items():
        if token is not None:
            named[name] = _checked(name, token)
    return named, [_checked("extra_special_tokens", token) for token in extra or ()]


def _specific_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the tokens with names of their own out of the settings."""
    standard = {f"{name}_token" for name in NAMES}
    specific = {
        name: settings.pop(name)
        for name in list(settings)
        if name.endswith("_token") and name not in standard and isinstance(settings[name], str)
    }
    if isinstance(settings.get("extra_special_tokens"), dict):
        specific |= settings.pop("extra_special_tokens")
    return specific


def _add_tokens(
    settings: dict[str, Any], folder: Path, document: Mapping[str, Any] | None
) -> dict[str, AddedToken]:
    """Fill in ``added_tokens_decoder``; return the tokens in it by their text."""
    tokens: dict[int, AddedToken] = {}
    by_text: dict[str, AddedToken] = {}

    def add(number: int, token: AddedToken) -> None:
        tokens[number] = by_text[token.content] = token

    if "added_tokens_decoder" in settings:
        for number, table in settings["added_tokens_decoder"].items():
            add(int(number), AddedToken(**table))
    else:
        _merge_special_tokens_map(settings, read_table(folder / "special_tokens_map.json"))
        special = {_text(settings[f"{n}_token"]) for n in NAMES if settings.get(f"{n}_token")}
        special |= {_text(token) for token in settings.get("extra_special_tokens") or ()}
        for text, number in read_table(folder / "added_tokens.json").items():
            own = text in special
            add(
                number,
                AddedToken(text, lstrip=False, rstrip=False, normalized=not own, special=own),
            )
        for table in document["added_tokens"] if document is not None else ():
            add(table["id"], AddedToken(**{k: v for k, v in table.items() if k != "id"}))
    settings["added_tokens_decoder"] = tokens
    return by_text


def _merge_special_tokens_map(settings: dict[str, Any], table: Mapping[str, Any]) -> None:
    for name, value in table.items():
        if isinstance(value, dict) and name != "extra_special_tokens":
            rest = {flag: given for flag, given in value.items() if flag != "special"}
            settings[name] = AddedToken(**rest, special=True)
        elif name == "extra_special_tokens" and isinstance(value, list):
            known = list(settings.get(name) or ())
            for token in (
                AddedToken(**t, special=True) if isinstance(t, dict) else t for t in value
            ):
                if token not in known:
                    known.append(token)
            settings[name] = known
        else:
            settings[name] = value
    if isinstance(settings.get("extra_special_tokens"), dict):
        specific = settings.setdefault("model_specific_special_tokens", {})
        specific.update(settings.pop("extra_special_tokens"))


def _with_tokens(value: Any) -> Any:
    """Return a value with the tables in it that stand for tokens made tokens."""
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return AddedToken(**{k: v for k, v in value.items() if k != "__type"})
        return {key: _with_tokens(inner) for key, inner in value.items()}
    return [_with_tokens(inner) for inner in value] if isinstance(value, list) else value


def _is_token(value: Any) -> bool:
    return isinstance(value, (str, AddedToken))


def _checked(name: str, token: Any) -> Token:
    if not _is_token(token):
        raise FedloraError(
            f"tokenizer_config.json sets {name!r} to {token!r:.60}, which is no token; write its "
            "text there"
        )
    return token  # type: ignore[no-any-return]


def _text(token: Any) -> str:
    return token.content if isinstance(token, AddedToken) else str(token)
