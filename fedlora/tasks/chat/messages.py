"""The messages of a record's conversation, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fedlora.errors import FedloraError, shown
from fedlora.unicode import require_unicode

Message: TypeAlias = Mapping[str, Any]

_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing, as transformers'
_KINDS = {list: "a list", dict: "an object", bool: "true or false", int: "a number"}
_KINDS |= {float: "a number", str: "a text"}


class TurnFault(ValueError):
    """Why a conversation cannot be used, as the rest of a sentence that begins with the record."""


def read_messages(source: str) -> list[Message]:
    """Return the messages of a conversation; see ``check_messages``.

    Parameters
    ----------
    source
        JSON of a list of objects with role and content.

    Raises
    ------
    TurnFault
        When it is none, or nothing can be learnt from it.
    """
    try:
        found = json.loads(source)
    except (ValueError, RecursionError):
        found = source
    if not isinstance(found, list):
        raise TurnFault(
            f"has {shown(source)} for a conversation; write a list such as "
            '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        )
    return check_messages(found)


def check_messages(found: Sequence[Any]) -> list[Message]:
    """Return the messages of a conversation without keys that have no value.

    Readers of tables fill in the keys that other messages have, and templates would take them for
    given. ``apply_chat_template`` drops them, too.

    Raises
    ------
    TurnFault
        When one is none, or nothing can be learnt from them.
    """
    messages = [_message(number, value) for number, value in enumerate(found, 1)]
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise TurnFault(
            f"has a conversation of {len(roles)} messages and no assistant's turn; add what is to "
            "be learnt, or remove the record"
        )
    systems = [str(n) for n, role in enumerate(roles, 1) if role == "system"]
    if len(systems) > 1:
        raise TurnFault(
            f"has {len(systems)} system prompts, messages {' and '.join(systems)}; join them in "
            "the first message"
        )
    return messages


def _message(number: int, value: Any) -> Message:
    """Return one message without keys that have no value."""
    if not isinstance(value, dict):
        raise TurnFault(
            f"has {_kind(value)} for message {number}, {shown(value)}; write it as an object with "
            "role and content"
        )
    message = {key: inner for key, inner in value.items() if inner is not None}
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise TurnFault(
            f"has the role {shown(role)} in message {number}; write system, user or assistant"
        )
    _check_content(number, role, message)
    if message.get("weight", 1) != 1:
        raise TurnFault(
            f"has weight {shown(message['weight'])} in message {number}, and every assistant's "
            "turn counts alike; take the key out, or end the conversation before it"
        )
    try:
        require_unicode(json.dumps(message, ensure_ascii=False), "it", "mend it")
    except FedloraError as error:
        raise TurnFault(
            f"has in message {number} what is no Unicode ({error}); mend or remove the record"
        ) from None
    said = next((message[name] for name in _REASONING if name in message), None)
    return message if said is None else {"thinking": said, **message, "reasoning_content": said}


def _check_content(number: int, role: str, message: Message) -> None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    where = f"message {number} ({shown(role)})"
    if isinstance(content, list):
        raise TurnFault(
            f"has a list as content of {where}, as for models that see or hear; write its text "
            "alone, as a text in quotes"
        )
    if content is not None and not isinstance(content, str):
        raise TurnFault(
            f"has {_kind(content)} as content of {where}, {shown(content)}; write a text in quotes"
        )
    if content is None or not (content.strip() or message.get("tool_calls")):
        raise TurnFault(
            f"has an empty turn, {where} with the content {shown(content)}; write one or remove it"
        )


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), "a value")
