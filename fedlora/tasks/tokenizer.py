"""Tokenizers from a Hugging Face model folder, read with the ``tokenizers`` library alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from fedlora.errors import FedloraError
from fedlora.tasks.auto_tokenizer import AutoTokenizer, load_auto_tokenizer
from fedlora.tasks.auto_tokenizer.settings import read_table
from fedlora.tasks.chat import ChatTemplates

_TEXT = (1 << 32) - 1  # an id that no vocabulary has


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes
    ----------
    backend
        The tokenizer of the ``tokenizers`` library, without its post-processor: what that puts
        around a text are ``opening`` and ``closing``.
    opening, closing
        Ids that are put before and after every text, such as those of [CLS] and [SEP].
    bos_id, eos_id, pad_id, unk_id
        Ids of the special tokens; None where the model has no such token.
    vocab_size
        Number of ids, added tokens included.
    digest
        SHA-256 of the tokenizer's serialisation: equal digests give equal ids for every text.
    truncation_side
        The end at which a long text loses tokens: ``right``, or ``left`` where the model's files
        say so.
    chat
        The model's chat templates.
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
    truncation_side: str = "right"
    chat: ChatTemplates = field(default_factory=lambda: ChatTemplates(Path()))

    @cached_property
    def special_ids(self) -> frozenset[int | None]:
        """Ids that are no part of a text: those around it, and of begin, end and padding."""
        return frozenset((*self.opening, *self.closing, self.bos_id, self.eos_id, self.pad_id))

    @cached_property
    def unsplit(self) -> frozenset[str]:
        """Texts of the tokens that are never split, among them those that end a turn."""
        added = self.backend.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added)

    def digest_for(self, *, pooled: bool) -> str:
        """Return what server and client must have in common to make the same ids of a record.

        Parameters
        ----------
        pooled
            Whether the task has one class a row, to which chat templates mean nothing.
        """
        if pooled or not self.chat.digest:
            return self.digest
        return hashlib.sha256(f"{self.digest}{self.chat.digest}".encode()).hexdigest()

    @cached_property
    def largest_id(self) -> int:
        """The largest id that a text or what is around it may get."""
        ends = (number for number in self.special_ids if number is not None)
        return max((*self.backend.get_vocab().values(), *ends), default=0)

    def encode(self, text: str, max_length: int, *, special: bool = True) -> list[int]:
        """Return the token ids of a text.

        Parameters
        ----------
        text
            Any text.
        max_length
            Most ids to return. A longer text loses tokens at ``truncation_side``; special tokens
            are kept.
        special
            Whether to put the opening and closing ids around the text.

        Raises
        ------
        FedloraError
            When the special tokens alone exceed ``max_length``; see ``pieces``.
        """
        if not special:
            return self.cut(self.pieces(text)[0], max_length)
        return self.encode_counting(text, max_length)[0]

    def encode_counting(self, text: str, max_length: int) -> tuple[list[int], int]:
        """Return what ``encode`` returns, and how many tokens the text has lost.

        Raises
        ------
        FedloraError
            See ``encode``.
        """
        ids, _ = self.pieces(text)
        room = max_length - len(self.opening) - len(self.closing)
        if room < 0:
            raise FedloraError(
                f"task.max_length {max_length} has no room for the "
                f"{len(self.opening) + len(self.closing)} special tokens of a text; raise it"
            )
        kept = self.cut(ids, room)
        return [*self.opening, *kept, *self.closing], len(ids) - len(kept)

    def cut(self, ids: list[int], most: int) -> list[int]:
        """Return at most so many ids of a text; it loses those at ``truncation_side``."""
        return ids[:most] if self.truncation_side == "right" else ids[max(0, len(ids) - most) :]

    def pieces(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return a text's ids without special tokens, and where each token lies in it.

        A place is first character and the one after the last, counted in ``text``; empty for what
        the tokenizer itself puts in.

        Raises
        ------
        FedloraError
            When the vocabulary lacks the token for what it does not know.
        """
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except Exception as error:  # the library has no kind of its own
            raise FedloraError(
                f"the tokenizer cannot encode a text ({error}); mend its files"
            ) from None
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        # Not left to the backend, which keeps special tokens that are marked as normalized.
        special = self.special_ids
        text: str = self.backend.decode([number for number in ids if number not in special])
        return text


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder, as ``AutoTokenizer`` of transformers makes it.

    Parameters
    ----------
    folder
        Folder with ``tokenizer.json``, or with the vocabulary files of a GPT-2, OPT, RoBERTa, Qwen
        or BERT model, and with the settings that stand beside it.

    Raises
    ------
    FedloraError
        When there is none of these, a file is damaged, or the files are of a model whose tokenizer
        cannot be built from them.
    """
    # Texts are encoded one at a time; the variable stops a warning in processes that fork later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        made = load_auto_tokenizer(folder)
        opening, closing = _surroundings(made.backend.post_processor)
    except FedloraError:
        raise
    except Exception as error:  # what the library raises for a damaged file
        raise FedloraError(
            f"the tokenizer in {folder} cannot be read ({error}); copy its files anew"
        ) from None
    backend, digest = made.backend, _digest(made)
    backend.post_processor = None  # it may cut the places that tokens have in a text
    config = read_table(folder / "config.json")
    ids = {
        name: _special_id(backend, token, config.get(f"{name}_token_id"))
        for name, token in made.names.items()
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
        digest=digest,
        truncation_side=made.truncation_side,
        chat=made.chat,
    )


def _digest(made: AutoTokenizer) -> str:
    digest = hashlib.sha256(made.backend.to_str().encode())
    if made.truncation_side != "right":
        digest.update(made.truncation_side.encode())
    if made.backend.encode_special_tokens:
        digest.update(b"split_special_tokens")
    return digest.hexdigest()


def _special_id(backend: tokenizers.Tokenizer, token: str | None, number: Any) -> int | None:
    if token is not None:
        number = backend.token_to_id(token)
    elif isinstance(number, list):  # a model may know several end tokens
        number = next(iter(number), None)
    return number if isinstance(number, int) and number >= 0 else None


def _surroundings(post_processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a post-processor puts before and after a text.

    It is asked with a word of a vocabulary of its own: that of the model may lack any letter.

    Raises
    ------
    FedloraError
        When it leaves out the text, or has it more than once.
    """
    probe = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": _TEXT}, unk_token="x"))
    probe.post_processor = post_processor
    ids = probe.encode("x").ids
    if ids.count(_TEXT) != 1:
        raise FedloraError(
            f"the tokenizer's post-processor has a text {ids.count(_TEXT)} times in what it makes "
            "of it; mend the template in tokenizer.json"
        )
    place = ids.index(_TEXT)
    return tuple(ids[:place]), tuple(ids[place + 1 :])
