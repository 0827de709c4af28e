"""From a record for language modelling to tokens, and which of them are learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedlora.config import DataConfig
from fedlora.errors import shown
from fedlora.tasks.chat import Span, check_messages, read_messages, render_turns
from fedlora.tasks.columns import Record
from fedlora.tasks.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """The tokens of a record.

    Attributes
    ----------
    ids
        Token ids, at most as many as were asked for.
    learnt
        Whether each of them is to be predicted.
    cut
        Tokens that were left out, as the record has more.
    """

    ids: list[int]
    learnt: list[bool]
    cut: int


class NoSeparator(ValueError):
    """A text without what ends its prompt, as the rest of a sentence that names the record."""


def renders_chat(asked: Literal["auto", "yes", "no"], tokenizer: Tokenizer) -> bool:
    """Tell whether the tokenizer's chat template renders the records.

    Parameters
    ----------
    asked
        As ``DataConfig.renders`` says it.
    tokenizer
        The model's.

    Raises
    ------
    FedloraError
        When it should, and there is none, or it cannot be read.
    """
    if asked == "no" or (asked == "auto" and not tokenizer.chat.templates):
        return False
    tokenizer.chat.check()
    return True


def encode_record(
    record: Record, tokenizer: Tokenizer, data: DataConfig, max_length: int, *, chat: bool
) -> Encoded:
    """Return the tokens of a record, and which of them are learnt.

    A text is encoded once and whole; a token that has a character of what is learnt is learnt.

    Parameters
    ----------
    record, tokenizer, data
        As for ``Task.samples``.
    max_length
        Most tokens; a longer record loses those at the tokenizer's ``truncation_side``.
    chat
        What ``renders_chat`` says.

    Raises
    ------
    TurnFault, NoSeparator
        When the record cannot be used.
    FedloraError
        When the tokenizer cannot encode it.
    """
    if chat:
        return _conversation(record, tokenizer, data, max_length)
    if data.prompt:
        prompt = record[data.prompt]
        return _text(prompt + record[data.completion], len(prompt), tokenizer, max_length)
    text, border = record[data.text], 0
    if data.prompt_separator:
        place = text.find(data.prompt_separator)
        if place < 0:
            raise NoSeparator(
                f"has no {shown(data.prompt_separator)}; mend the record or set "
                "data.prompt_separator to an empty string"
            )
        border = place + len(data.prompt_separator)
    return _text(text, border, tokenizer, max_length)


def _text(text: str, border: int, tokenizer: Tokenizer, longest: int) -> Encoded:
    """Return a text's tokens; those are learnt that do not end before a border in characters."""
    opening = tokenizer.opening
    whole, places = tokenizer.pieces(text)
    prompt = next((n for n, (_, stop) in enumerate(places) if stop > border), len(whole))
    # Not the tokenizer's closing ids: a text ends with the end token, and only there.
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ids = whole
    if tokenizer.truncation_side == "left":
        ids = tokenizer.cut(whole, max(0, longest - len(opening) - len(end)))
        prompt -= min(prompt, len(whole) - len(ids))
    prompt = len(opening) + (prompt if border else 0)
    ids = [*opening, *ids, *end][:longest]
    cut = len(opening) + len(whole) + len(end) - len(ids)
    return Encoded(ids, [n >= prompt for n in range(len(ids))], cut)


def _conversation(record: Record, tokenizer: Tokenizer, data: DataConfig, longest: int) -> Encoded:
    """Return the tokens of a conversation: those of ``apply_chat_template``, none around them."""
    if data.messages:
        messages = read_messages(record[data.messages])
    else:
        said = (("user", record[data.prompt]), ("assistant", record[data.completion]))
        messages = check_messages([{"role": role, "content": text} for role, text in said])
    rendered = render_turns(tokenizer.chat, messages, tokenizer.unsplit)
    ids, places = tokenizer.pieces(rendered.text)
    learnt = [False] * len(ids)
    for span in rendered.spans:
        for n in _within(places, span):
            learnt[n] = True
    kept = slice(None, longest)
    if tokenizer.truncation_side == "left":
        kept = slice(max(0, len(ids) - longest), None)
    return Encoded(ids[kept], learnt[kept], max(0, len(ids) - longest))


def _within(places: list[tuple[int, int]], span: Span) -> range:
    """Return the tokens from the first to the last one with a character of a span."""
    start, stop = span
    inside = [n for n, (a, b) in enumerate(places) if a < stop and b > start and a < b]
    return range(inside[0], inside[-1] + 1) if inside else range(0)
