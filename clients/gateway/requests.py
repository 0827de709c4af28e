"""What a body asks for: every field is honoured exactly, or the request is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from clients.gateway.faults import RequestFault
from clients.generation import Sampling
from fedlora.checks import number, whole
from fedlora.errors import FedloraError, shown
from fedlora.unicode import require_unicode

T = TypeVar("T")

ROLES = ("system", "user", "assistant")
_COMPLETION_TOKENS = 16  # as OpenAI's API has it
_MOST_TOKENS = 1 << 20
_HOTTEST = 2.0
_MOST_STOPS, _STOP_CHARACTERS = 16, 1_000

_SAMPLED = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
_SHARED = frozenset(
    ("model", "stream", "stream_options", "max_tokens", "stop", "user", *_SAMPLED),
)
_KNOWN: Mapping[bool, frozenset[str]] = {
    True: _SHARED | {"messages", "max_completion_tokens"},
    False: _SHARED | {"prompt"},
}
_IDLE: Mapping[bool, Mapping[str, tuple[Any, ...]]] = {
    True: {
        "n": (1,),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "logprobs": (False,),
        "tools": ([],),
        "tool_choice": ("none",),
        "response_format": ({"type": "text"},),
        "store": (False,),
    },
    False: {
        "n": (1,),
        "best_of": (1,),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "echo": (False,),
        "logprobs": (),
        "suffix": (),
    },
}
"""Fields that are understood where they ask for nothing, as applications send them."""
_IDLE_OF_MESSAGES = ("name", "refusal", "audio", "annotations", "function_call", "tool_calls")


@dataclass(frozen=True)
class TextRequest:
    """A text that is asked for.

    Attributes
    ----------
    messages
        The conversation; empty where a prompt is to be completed.
    prompt
        The prompt.
    sampling
        How tokens are chosen.
    most_tokens
        Tokens at most.
    stops
        Texts at which it ends.
    stream
        Whether it is answered piece by piece.
    usage_in_stream
        Whether a stream ends with what it took.
    """

    messages: tuple[Mapping[str, str], ...]
    prompt: str
    sampling: Sampling
    most_tokens: int
    stops: tuple[str, ...]
    stream: bool
    usage_in_stream: bool


def read_request(body: bytes, model: str, *, chat: bool) -> TextRequest:
    """Return what a body asks for.

    Parameters
    ----------
    body
        JSON, as OpenAI's API has it.
    model
        Name of the only model there is.
    chat
        Whether it is of ``chat/completions``, rather than ``completions``.

    Raises
    ------
    RequestFault
        For a field that is unknown, or that asks for what is not done.
    """
    fields = {name: value for name, value in _object(body).items() if value is not None}
    _check_names(fields, chat=chat)
    if (asked := _of("model", fields, str)) != model:
        raise RequestFault(
            f"model is {shown(asked)}, and this gateway has {model!r} alone; ask for that",
            *("model", "model_not_found", 404),
        )
    _of("user", fields, str, "")
    streams = _of("stream", fields, bool, False)
    options = _of("stream_options", fields, dict, {})
    if unknown := sorted(set(options) - {"include_usage"}):
        raise _unknown(f"stream_options.{unknown[0]}", "include_usage")
    if options and not streams:
        raise RequestFault(
            "stream_options mean nothing without stream=true; leave them out", "stream_options"
        )
    return TextRequest(
        _messages(fields) if chat else (),
        "" if chat else _prompt(fields),
        _sampling(fields),
        _most_tokens(fields, chat=chat),
        _stops(fields),
        streams,
        _of("include_usage", options, bool, False),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestFault(f"the body is no JSON ({error}); send an object") from None
    if not isinstance(found, dict):
        raise RequestFault(f"the body is {shown(found)}; send an object of model and messages")
    return found


def _check_names(fields: Mapping[str, Any], *, chat: bool) -> None:
    """Refuse fields that are unknown, and those that ask for what is not done."""
    for name, value in fields.items():
        if name in _KNOWN[chat]:
            continue
        if name not in _IDLE[chat]:
            raise _unknown(name, ", ".join(sorted(_KNOWN[chat])))
        idle = _IDLE[chat][name]
        same = any(
            value == other and isinstance(value, bool) == isinstance(other, bool) for other in idle
        )
        if not same:
            mend = f"leave it out, or set {idle[0]!r}" if idle else "leave it out"
            raise RequestFault(
                f"{name} is {shown(value)}, which this gateway does not do; {mend}",
                *(name, "unsupported_value"),
            )


def _unknown(name: str, known: str) -> RequestFault:
    return RequestFault(
        f"the field {shown(name)} is unknown; there are {known}", name, "unknown_parameter"
    )


def _of(name: str, fields: Mapping[str, Any], kind: type[T], default: T | None = None) -> T:
    value = fields.get(name, default)
    if value is None:
        raise RequestFault(f"{name} is missing; send it", name, "missing_required_parameter")
    if not isinstance(value, kind):
        raise RequestFault(f"{name} is {shown(value)}; send {_NAMES[kind]}", name)
    return value


_NAMES = {str: "a text", bool: "true or false", dict: "an object", list: "a list"}


def _explained(name: str, check: Callable[[], T]) -> T:
    """Return what a check returns; what it refuses is the field's fault."""
    try:
        return check()
    except FedloraError as error:
        raise RequestFault(str(error), name) from None


def _messages(fields: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    messages = tuple(
        _message(f"messages[{n}]", value) for n, value in enumerate(_of("messages", fields, list))
    )
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise RequestFault(
            f"messages are {len(roles)} without a user's turn; add what is to be answered",
            "messages",
        )
    if roles[-1] != "user":
        raise RequestFault(
            f"messages end with the {roles[-1]}'s turn; end them with the user's", "messages"
        )
    return messages


def _message(place: str, value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise RequestFault(f"{place} is {shown(value)}; send role and content", place)
    for name, part in value.items():
        empty = part is None or part == []
        if name not in ("role", "content") and not (name in _IDLE_OF_MESSAGES and empty):
            raise _unknown(f"{place}.{name}", "role, content")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise RequestFault(
            f"{place}.role is {shown(role)}; send {', '.join(ROLES)}", f"{place}.role"
        )
    if isinstance(content, list):
        content = "".join(_part(f"{place}.content[{n}]", part) for n, part in enumerate(content))
    if not isinstance(content, str):
        raise RequestFault(f"{place}.content is {shown(content)}; send a text", f"{place}.content")
    return {"role": role, "content": _unicode(f"{place}.content", content)}


def _part(place: str, part: Any) -> str:
    """Return the text of a part of a content."""
    fits = isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"
    if not fits or not isinstance(part["text"], str):
        raise RequestFault(f"{place} is {shown(part)}; the model reads texts alone", place)
    return part["text"]


def _prompt(fields: Mapping[str, Any]) -> str:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise RequestFault(f"prompt is {shown(prompt)}; send one text", "prompt")
    return _unicode("prompt", prompt)


def _unicode(place: str, text: str) -> str:
    _explained(place, lambda: require_unicode(text, place, "send it as UTF-8"))
    return text


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    asked = {name: fields[name] for name in _SAMPLED if name in fields}
    warm = _explained(
        "temperature", lambda: number("temperature", asked.get("temperature", 1.0), 0.0, _HOTTEST)
    )
    for name, value in asked.items():  # each by itself, so that the fault names its field
        alone: dict[str, Any] = {"temperature": 1.0, name: value}
        _explained(name, partial(Sampling, **alone))
    if warm == 0:  # the likeliest token, whatever was to be drawn from
        asked = {name: asked[name] for name in ("repetition_penalty",) if name in asked}
    return Sampling(**{**asked, "temperature": warm})


def _most_tokens(fields: Mapping[str, Any], *, chat: bool) -> int:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in fields]
    if len(names) > 1:
        raise RequestFault(
            "max_tokens and max_completion_tokens mean the same; send one", "max_tokens"
        )
    if not names:
        return _MOST_TOKENS if chat else _COMPLETION_TOKENS
    name = names[0]
    return _explained(name, lambda: whole(name, fields[name], 1, _MOST_TOKENS))


def _stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    given = fields.get("stop", [])
    stops = [given] if isinstance(given, str) else given
    fits = isinstance(stops, list) and len(stops) <= _MOST_STOPS
    if not fits or not all(isinstance(s, str) and 0 < len(s) <= _STOP_CHARACTERS for s in stops):
        raise RequestFault(
            f"stop is {shown(given)}; send a text, or up to {_MOST_STOPS}, of 1 to "
            f"{_STOP_CHARACTERS} characters",
            "stop",
        )
    return tuple(stops)
