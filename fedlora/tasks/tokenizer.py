"""Tokenizers from a Hugging Face model folder, read with the ``tokenizers`` library alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from fedlora.errors import FedloraError
from fedlora.tasks.vocabulary import build_tokenizer, special_names


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes
    ----------
    backend
        The tokenizer of the ``tokenizers`` library.
    opening, closing
        Ids that are put before and after every text, such as those of [CLS] and [SEP].
    bos_id, eos_id, pad_id, unk_id
        Ids of the special tokens; None where the model has no such token.
    vocab_size
        Number of ids, added tokens included.
    digest
        SHA-256 of the tokenizer's serialisation: equal digests give equal ids for every text.
    """

    backend: tokenizers.Tokenizer
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    vocab_size: int
    digest: str

    @cached_property
    def special_ids(self) -> frozenset[int | None]:
        """Ids that are no part of a text: those around it, and of begin, end and padding."""
        return frozenset((*self.opening, *self.closing, self.bos_id, self.eos_id, self.pad_id))

    def encode(self, text: str, max_length: int, *, special: bool = True) -> list[int]:
        """Return the token ids of a text.

        Parameters
        ----------
        text
            Any text.
        max_length
            Most ids to return. A longer text loses tokens at its end; special tokens are kept.
        special
            Whether to put the opening and closing ids around the text.

        Raises
        ------
        FedloraError
            When the special tokens alone exceed ``max_length``.
        """
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        if not special:
            return ids[:max_length]
        room = max_length - len(self.opening) - len(self.closing)
        if room < 0:
            raise FedloraError(
                f"task.max_length {max_length} has no room for the "
                f"{len(self.opening) + len(self.closing)} special tokens of a text; raise it"
            )
        return [*self.opening, *ids[:room], *self.closing]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        # Not left to the backend, which keeps special tokens that are marked as normalized.
        special = self.special_ids
        text: str = self.backend.decode([number for number in ids if number not in special])
        return text


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder.

    Parameters
    ----------
    folder
        Folder with ``tokenizer.json``, which is taken as it stands, or with the vocabulary files
        of a GPT-2, OPT, RoBERTa or BERT model.

    Raises
    ------
    FedloraError
        When there is none of these, a file is damaged, or the files are of a model whose tokenizer
        cannot be built from them.
    """
    # Texts are encoded one at a time; the variable stops a warning in processes that fork later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    config, settings = _read_json(folder / "config.json"), _settings(folder)
    file = folder / "tokenizer.json"
    try:
        if file.exists():
            backend, names = tokenizers.Tokenizer.from_file(str(file)), special_names(settings, {})
        else:
            backend, names = build_tokenizer(folder, str(config.get("model_type", "")), settings)
        backend.no_padding()
        backend.no_truncation()
        opening, closing = _surroundings(backend)
    except FedloraError:
        raise
    except Exception as error:  # what the library raises for a damaged file
        raise FedloraError(
            f"the tokenizer in {folder} cannot be read ({error}); copy its files anew"
        ) from None
    ids = {
        name: _special_id(backend, names[name], config.get(f"{name}_token_id")) for name in names
    }
    return Tokenizer(
        backend,
        opening,
        closing,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=ids["pad"],
        unk_id=ids["unk"],
        vocab_size=backend.get_vocab_size(),
        digest=hashlib.sha256(backend.to_str().encode()).hexdigest(),
    )


def _settings(folder: Path) -> dict[str, Any]:
    """Return ``tokenizer_config.json``, with the older map of special tokens where that counts."""
    settings = _read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings |= _read_json(folder / "special_tokens_map.json")
    return settings


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FedloraError(f"{path} cannot be read ({error}); copy it anew") from None
    if not isinstance(value, dict):
        raise FedloraError(f"{path} holds no table; copy it anew")
    return value


def _special_id(backend: tokenizers.Tokenizer, token: str | None, number: Any) -> int | None:
    if token is not None:
        number = backend.token_to_id(token)
    elif isinstance(number, list):  # a model may know several end tokens
        number = next(iter(number), None)
    return number if isinstance(number, int) and number >= 0 else None


def _surroundings(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the post-processor puts before and after a text."""
    if backend.num_special_tokens_to_add(is_pair=False) == 0:
        return (), ()
    probe = backend.encode("a")
    is_text = [not special for special in probe.special_tokens_mask]
    first = is_text.index(True)
    last = len(is_text) - is_text[::-1].index(True)
    return tuple(probe.ids[:first]), tuple(probe.ids[last:])
