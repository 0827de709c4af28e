"""Tokens that an exchange brings with drafts, where texts are written as people wrote them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from clients.generation import DraftHistory, Drafts
from fedlora.errors import FedloraError
from fedlora.split import resolve_path
from fedlora.tasks import load_tokenizer
from simulations.bench.context import Figure
from simulations.bench.generation.bed import Bed

_DATA = "$FEDLORA_SHARED/data/e2e/train.txt"
TOKENIZERS = {
    "tinystories": ("$FEDLORA_SHARED/models/tinystories-656k", 2.0),
    "gpt2": ("$FEDLORA_SHARED/data/gpt2-tokenizer", 1.6),
}
"""Folder of each tokenizer, and the tokens an exchange that are to be reached."""
_SEPARATOR = "||"
BEGUN = 8
"""Tokens of a person's text with which a model goes on."""
_EARLIER, _WRITTEN, LONGEST = 200, 300, 8


def texts_are_here(model: str) -> bool:
    """Tell whether tokenizer and texts are on this machine."""
    try:
        for path in (TOKENIZERS[model][0], _DATA):
            resolve_path(path, "folder or file", "bench")
    except (FedloraError, KeyError):
        return False
    return True


def tokens_an_exchange(model: str) -> list[Figure]:
    """Draft descriptions of restaurants, with and without 200 earlier ones of the same client.

    Parameters
    ----------
    model
        Whose tokenizer is used, one of ``TOKENIZERS``.
    """
    folder, target = TOKENIZERS[model]
    texts = people_texts(resolve_path(folder, "tokenizer", "bench"), _EARLIER + _WRITTEN)
    history = DraftHistory()
    alone = _tokens_an_exchange(texts[_EARLIER:], None)
    for _, written in texts[:_EARLIER]:
        history.add(written)
    known = _tokens_an_exchange(texts[_EARLIER:], history)
    return [
        Figure("tokens_an_exchange_prompt_only", alone, "tokens"),
        Figure("tokens_an_exchange", known, "tokens", target),
    ]


def people_or_chance(bed: Bed, count: int, *, tiny: bool) -> list[list[int]]:
    """Return so many people's texts in a model's tokens, or of random tokens for a tiny model."""
    if not tiny:
        return [written for _, written in people_texts(bed.folder, count)]
    generator = torch.Generator().manual_seed(0)
    vocabulary = bed.checkpoint.size("vocab_size")
    found: list[list[int]] = torch.randint(3, vocabulary, (count, 12), generator=generator).tolist()
    return found


def people_texts(folder: Path, count: int) -> list[tuple[list[int], list[int]]]:
    """Return so many prompts with what follows each, drawn with a fixed seed."""
    tokenizer = load_tokenizer(folder)
    lines = resolve_path(_DATA, "data", "bench").read_text(encoding="utf-8").splitlines()
    pairs = []
    for line in random.Random(0).sample(lines, count):
        prompt = line[: line.index(_SEPARATOR) + len(_SEPARATOR)]
        ids, places = tokenizer.pieces(line)
        begin = next(n for n, (_, end) in enumerate(places) if end > len(prompt))
        pairs.append((ids[:begin], ids[begin:]))
    return pairs


def _tokens_an_exchange(
    texts: Sequence[tuple[Sequence[int], Sequence[int]]], history: DraftHistory | None
) -> float:
    exchanges = tokens = 0
    for prompt, written in texts:
        drafts, place = Drafts(prompt, history), 0
        while place < len(written):
            guess = drafts.propose(min(LONGEST, len(written) - place - 1))
            pairs = enumerate(zip(guess, written[place:], strict=False))
            right = next((n for n, (a, b) in pairs if a != b), len(guess))
            for token in written[place : place + right + 1]:
                drafts.add(token)
            place += right + 1
            exchanges += 1
        tokens += len(written)
    return tokens / exchanges
