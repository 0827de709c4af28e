"""Conversations as a tokenizer's chat template renders them, and which of it the assistant said.

The text is the one of ``apply_chat_template`` of transformers 5, rendered with jinja2 alone, as a
device has no transformers.
"""

from fedlora.tasks.chat.messages import Message, TurnFault, check_messages, read_messages
from fedlora.tasks.chat.template import ChatTemplates, Span
from fedlora.tasks.chat.turns import Rendered, render_turns

__all__ = [
    "ChatTemplates",
    "Message",
    "Rendered",
    "Span",
    "TurnFault",
    "check_messages",
    "read_messages",
    "render_turns",
]
