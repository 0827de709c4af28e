"""Guesses of the next tokens without a second model: what followed the last ones before.

Prompt look-up decoding: the longest run of last tokens, of at most three, that stood earlier in
prompt or output, or in what this client has generated before, is taken to go on as it did there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fedlora.errors import FedloraError
from fedlora.storage import replace_file

_LONGEST = 3
_MOST_TOKENS = 20_000


class Lookup:
    """Tokens, and where each run of up to three of them stood last."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}

    def add(self, ids: Sequence[int]) -> None:
        """Add tokens at the end."""
        for token in ids:
            end = len(self.ids)  # runs that end before the new token go on with it
            for size in range(1, min(_LONGEST, end) + 1):
                self._places[tuple(self.ids[end - size :])] = end
            self.ids.append(token)

    def after(self, run: tuple[int, ...], most: int) -> list[int]:
        """Return what followed a run where it stood last; empty where it never stood."""
        place = self._places.get(run)
        return [] if place is None else self.ids[place : place + most]


class DraftHistory:
    """What this client has generated before, for drafts alone.

    Parameters
    ----------
    path
        File that keeps it, readable by its owner alone; None keeps it in memory.
    tokenizer
        Digest of the tokenizer, without which ids mean nothing.
    most_tokens
        Tokens that are kept; the oldest are dropped.

    Raises
    ------
    FedloraError
        When the file is none, or is of another tokenizer.
    """

    def __init__(
        self, path: Path | None = None, tokenizer: str = "", most_tokens: int = _MOST_TOKENS
    ) -> None:
        self._path, self._tokenizer, self._most = path, tokenizer, most_tokens
        self._texts: list[list[int]] = []
        self.lookup = Lookup()
        if path is not None and path.exists():
            self._read(path)

    def add(self, ids: Sequence[int]) -> None:
        """Take in what was generated, and write it down."""
        if not ids:
            return
        self._texts.append(list(ids)[-self._most :])
        if sum(map(len, self._texts)) > self._most:
            while sum(map(len, self._texts)) > self._most * 3 // 4 and len(self._texts) > 1:
                del self._texts[0]
            self._index(self._texts)
        else:
            self._index(self._texts[-1:], fresh=False)
        if self._path is not None:
            content = {"tokenizer": self._tokenizer, "texts": self._texts}
            replace_file(self._path, json.dumps(content).encode(), private=True)

    def _index(self, texts: Sequence[Sequence[int]], *, fresh: bool = True) -> None:
        if fresh:
            self.lookup = Lookup()
        for ids in texts:
            self.lookup.add([*ids, -1])  # no text goes on into the next

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_bytes())
            tokenizer, texts = content["tokenizer"], content["texts"]
            if not all(type(token) is int and token >= 0 for ids in texts for token in ids):
                raise TypeError("its tokens are no numbers")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FedloraError(
                f"{path} is no history of drafts ({type(error).__name__}: {error}); remove it"
            ) from None
        if tokenizer != self._tokenizer:
            raise FedloraError(
                f"{path} holds tokens of another tokenizer; name another file, or remove it"
            )
        self._texts = texts
        self._index(texts)


class Drafts:
    """Guesses for one text.

    Parameters
    ----------
    ids
        The prompt.
    history
        What was generated before; None: only prompt and output are looked at.
    """

    def __init__(self, ids: Sequence[int], history: DraftHistory | None = None) -> None:
        self._own = Lookup()
        self._own.add(ids)
        self._history = history

    def add(self, token: int) -> None:
        """Take in the next token of the text."""
        self._own.add([token])

    def propose(self, most: int) -> list[int]:
        """Return a guess of at most so many next tokens; empty where nothing is known."""
        if most < 1:
            return []
        looked = [self._own, *([self._history.lookup] if self._history else [])]
        for size in range(min(_LONGEST, len(self._own.ids)), 0, -1):
            run = tuple(self._own.ids[-size:])
            for lookup in looked:
                found = lookup.after(run, most)
                if -1 in found:
                    found = found[: found.index(-1)]
                if found:
                    return found
        return []
