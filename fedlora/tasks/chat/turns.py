"""Where in a rendered conversation the assistant speaks.

A template with ``generation`` tags says it. Of any other the conversation is rendered once more,
with a mark for each content: what stands between the marks does not depend on what was said, so
that the contents are found exactly, or the record is refused. To a turn belongs the token that ends
it, as the model has to learn to stop.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import jinja2

from fedlora.errors import FedloraError, shown
from fedlora.tasks.chat.messages import Message, TurnFault
from fedlora.tasks.chat.template import ChatTemplates, Span

_CALLS = ("tool_calls", "function_call")
_THOUGHTS = ("reasoning", "reasoning_content", "thinking")
_SHOWN: tuple[Callable[[str], str], ...] = (
    *(str, str.rstrip, str.lstrip, str.strip),
    lambda content: json.dumps(content, ensure_ascii=False)[1:-1],  # jinja's tojson
)
_TAGS = "put {% generation %} and {% endgeneration %} around the assistant's turns in the template"


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it.

    Attributes
    ----------
    text
        What the template makes of it.
    spans
        The assistant's turns: first character and the one after the last.
    """

    text: str
    spans: tuple[Span, ...]


def render_turns(
    templates: ChatTemplates, messages: Sequence[Message], ends: Collection[str]
) -> Rendered:
    """Render a conversation and find the assistant's turns.

    Parameters
    ----------
    templates
        The tokenizer's.
    messages
        As ``read_messages`` returns them.
    ends
        Texts of the tokens that may end a turn: all that the tokenizer never splits.

    Raises
    ------
    TurnFault
        When the template refuses the conversation, fails, leaves out a message, or does not let the
        assistant's turns be told from the rest.
    FedloraError
        When there is no template, or it cannot be read.
    """
    text, said = _render(templates, messages)
    _check_calls(templates, messages, text)
    marks = _marks(messages)
    marked = [
        {**m, "content": mark} if str(m.get("content", "")).strip() else m
        for m, mark in zip(messages, marks, strict=True)
    ]
    frame, _ = _render(templates, marked)
    _check_all_there(marked, marks, frame)
    if templates.tagged:
        return Rendered(text, _spans(text, said))
    _check_plain(templates, messages, text)
    places = _locate(messages, marks, frame, text)
    turns, usual = [], ""
    if messages[-1]["role"] == "assistant":
        usual = _end(frame.rpartition(marks[-1])[2], ends)
    for n, (start, stop) in sorted(places.items()):
        end = usual
        if n < len(messages) - 1 and not (end and text.startswith(end, stop)):
            end = _end(_tail(templates, marked[: n + 1], marks[n]), ends)
            end = end if text.startswith(end, stop) else ""
            usual = usual or end
        turns.append((start, stop + len(end)))
    return Rendered(text, tuple(turns))


def _render(
    templates: ChatTemplates, messages: Sequence[Message]
) -> tuple[str, list[tuple[int, str]]]:
    try:
        return templates.render(messages)
    except FedloraError:
        raise
    except Exception as error:  # whatever a template may come to
        if type(error) is jinja2.TemplateError:  # by its own raise_exception
            roles = ", ".join(str(message["role"]) for message in messages)
            raise TurnFault(
                f"has the roles {shown(roles)}, and the chat template refuses the conversation "
                f"({_words(error)}); mend or remove the record"
            ) from None
        raise TurnFault(
            f"has a conversation at which the chat template fails ({type(error).__name__}: "
            f"{_words(error)}); mend the record, or the template beside the tokenizer"
        ) from None


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:160]


def _matters(
    templates: ChatTemplates, messages: Sequence[Message], n: int, key: str, text: str
) -> bool:
    """Tell whether a template makes something of a message's key."""
    without = {name: value for name, value in messages[n].items() if name != key}
    try:
        return _render(templates, [*messages[:n], without, *messages[n + 1 :]])[0] != text
    except TurnFault:  # it fails without
        return True


def _check_calls(templates: ChatTemplates, messages: Sequence[Message], text: str) -> None:
    """Refuse calls of tools of which a template makes nothing."""
    for n, message in enumerate(messages):
        for key in _CALLS:
            if key in message and not _matters(templates, messages, n, key, text):
                raise TurnFault(
                    f"has {key!r} in message {n + 1}, which the chat template leaves out; take it "
                    "out, or mend the template"
                )


def _check_plain(templates: ChatTemplates, messages: Sequence[Message], text: str) -> None:
    """Refuse an assistant's message that says more than its content."""
    for n, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        for key in sorted(message.keys() - {"role", "content"}):
            if key in (*_CALLS, *_THOUGHTS) or _matters(templates, messages, n, key, text):
                raise TurnFault(
                    f"has {key!r} in message {n + 1}, and the chat template does not say what of "
                    f"it is the assistant's; {_TAGS}"
                )


def _marks(messages: Sequence[Message]) -> list[str]:
    """Return a word for each message that stands in none of them and in no template."""
    everything, salt = json.dumps(messages), 0
    while f"Zq{salt}fedlora" in everything:
        salt += 1
    return [f"Zq{salt}fedlora{n}x" for n in range(len(messages))]


def _check_all_there(marked: Sequence[Message], marks: Sequence[str], frame: str) -> None:
    """Refuse what a template leaves out without a word."""
    for number, (message, mark) in enumerate(zip(marked, marks, strict=True), 1):
        if message.get("content") == mark and mark not in frame:
            raise TurnFault(
                f"has message {number} with the role {shown(message['role'])}, whose content the "
                "chat template leaves out; take the message out, or mend the template"
            )


def _spans(text: str, said: Sequence[tuple[int, str]]) -> tuple[Span, ...]:
    """Return what a template's tags hold.

    A tag within a macro, or within another tag, does not know where its text stands.
    """
    spans = [(start, start + len(turn)) for start, turn in said if turn]
    if not spans:
        raise TurnFault(
            "has an assistant's turn at which the generation tags of the chat template hold "
            f"nothing, so that nothing would be learnt; {_TAGS}"
        )
    apart = all(start >= stop for (_, stop), (start, _) in itertools.pairwise(spans))
    if not apart or any(not text.startswith(turn, start) for start, turn in said):
        raise TurnFault(
            "has turns whose place the generation tags of the chat template do not tell; take the "
            "tags out of macros and of one another"
        )
    return tuple(spans)


def _locate(
    messages: Sequence[Message], marks: Sequence[str], frame: str, text: str
) -> dict[int, Span]:
    """Return where the content of each of the assistant's messages stands in the text.

    A content is as it was written, or as JSON, or without the white space at its ends.
    """
    said = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    for n in said:
        if frame.count(marks[n]) != 1:
            raise TurnFault(
                f"has a content that is shown {frame.count(marks[n])} times in message {n + 1}, "
                f"and the chat template does not say what of it is the assistant's; {_TAGS}"
            )
    first, *pieces = re.split(f"({'|'.join(marks)})", frame)
    place, found = len(first), {}
    fits = text.startswith(first)
    for left, mark, after in zip(
        range(len(pieces), 0, -2), pieces[::2], pieces[1::2], strict=False
    ):
        n = marks.index(mark)
        content = _shown_as(str(messages[n]["content"]), after, text, place, last=left == 2)
        if content is None or not fits:
            raise TurnFault(
                f"has message {n + 1} with the role {shown(messages[n]['role'])}, and the chat "
                "template changes its content or what is around it, so that the assistant's turns "
                f"cannot be told from the rest; {_TAGS}"
            )
        if n in said:
            found[n] = (place, place + len(content))
        place += len(content) + len(after)
    return found


def _shown_as(content: str, after: str, text: str, place: int, *, last: bool) -> str | None:
    """Return what stands for a content at a place of the text; None where nothing does."""
    for form in _SHOWN:
        piece = form(content)
        stop = place + len(piece)
        whole = not last or len(text) == stop + len(after)
        if whole and text.startswith(piece, place) and text.startswith(after, stop):
            return piece
    return None


def _tail(templates: ChatTemplates, marked: Sequence[Message], mark: str) -> str:
    """Return what a template puts after an assistant's turn with which a conversation ends."""
    try:
        return templates.render(marked)[0].rpartition(mark)[2]
    except Exception:  # not every beginning is a conversation to a template
        return ""


def _end(tail: str, ends: Collection[str]) -> str:
    """Return the part of what follows a content that ends its turn: up to the first such token."""
    tail = tail.rstrip()
    stops = [tail.index(end) + len(end) for end in ends if end.strip() and end in tail]
    return tail[: min(stops)] if stops else tail
