"""What a device must know of a task, and the tokens after which its model is to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedlora.config import Scenario, TaskConfig
from fedlora.errors import FedloraError, shown
from fedlora.tasks import Tokenizer, renders_chat, task_class

DEVICE_FILE = "fedlora.json"
"""Holds what a device must know of the task to use an exported adapter."""


@dataclass(frozen=True)
class TaskFacts:
    """What a device must know of a task to use an adapter.

    Attributes
    ----------
    model
        ``model.path`` of the run.
    task
        Its task.
    prompt_separator
        Its ``data.prompt_separator``.
    chat
        Whether the chat template renders its records, as ``DataConfig.renders`` says it.
    embedding
        Which token embedding the run computed with: the backbone's (``base``), one that the clients
        trained and share, or ``personal`` ones, which stay with them.
    weights, client_front, client_back
        In what the server kept its blocks' matrices (``ModelConfig.weights``), over which the
        adapter was trained, and how many blocks it did not have.
    """

    model: str
    task: TaskConfig
    prompt_separator: str
    chat: Literal["auto", "yes", "no"] = "no"
    weights: Literal["fp32", "bf16", "int8", "nf4"] = "fp32"
    client_front: int = 0
    client_back: int = 0
    embedding: Literal["base", "shared", "personal"] = "base"

    @classmethod
    def of(cls, scenario: Scenario) -> TaskFacts:
        """Return the facts of a scenario."""
        data, model = scenario.data, scenario.model
        return cls(
            model.path,
            scenario.task,
            data.prompt_separator,
            data.renders,
            model.few_bits or "fp32",
            model.client_front,
            model.client_back,
            _embedding(scenario),
        )


def _embedding(scenario: Scenario) -> Literal["base", "shared", "personal"]:
    if not scenario.train.embedding or not task_class(scenario.task.kind).tokens:
        return "base"
    return "personal" if scenario.front.share == "personal" else "shared"


def prompt_ids(facts: TaskFacts, tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens after which a model is to go on, as it was trained to.

    Parameters
    ----------
    facts
        Of the task.
    tokenizer
        The backbone's.
    text
        What a user says, where the chat template renders records; else the prompt.

    Raises
    ------
    FedloraError
        When the chat template cannot render a user's turn.
    """
    if renders_chat(facts.chat, tokenizer):
        return chat_ids(tokenizer, [{"role": "user", "content": text}])
    prompt = text + facts.prompt_separator
    return [*tokenizer.opening, *tokenizer.encode(prompt, 1 << 20, special=False)]


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return a conversation's tokens up to where the assistant's turn begins.

    Raises
    ------
    FedloraError
        When the chat template cannot render it.
    """
    try:
        rendered, _ = tokenizer.chat.render(messages, opens=True)
    except Exception as error:  # whatever a template may come to
        if isinstance(error, FedloraError):
            raise
        reason = str(error).strip().partition("\n")[0].rstrip(":.")
        raise FedloraError(
            f"the chat template fails at {shown(messages[-1]['content'])} ({reason}); mend it"
        ) from None
    return tokenizer.pieces(rendered)[0]
