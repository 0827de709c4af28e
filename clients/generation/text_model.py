"""A run's model as a device writes texts with it, wherever the server's blocks are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from clients.build import EdgeParts
from clients.generation.completion import Completion
from clients.generation.drafts import DraftHistory
from clients.generation.ends import TextEnds
from clients.generation.kept_text import KeptText
from clients.generation.leaving import LeaveEarly
from clients.generation.pace import DraftPace
from clients.generation.remote_row import RemoteRow
from clients.generation.sampling import Sampler
from clients.generation.writer import Writer
from fedlora.commands.prompts import TaskFacts, chat_ids, prompt_ids
from fedlora.errors import FedloraError
from fedlora.split import DTYPES, LanguageHead
from fedlora.tasks import Tokenizer, end_tokens, lacking_token
from fedlora.unicode import require_unicode


@dataclass
class TextModel:
    """The device's parts of a run's model, and its session with a server.

    Attributes
    ----------
    facts
        What the model is for.
    parts
        The device's.
    tokenizer
        The model's.
    new_writer
        Makes one that writes texts in a session of its own.
    writer
        The one of ``write``.
    texts
        Where texts are kept while they are written; None, where both sides are in one process.
    """

    facts: TaskFacts
    parts: EdgeParts
    tokenizer: Tokenizer
    new_writer: Callable[[], Writer]
    texts: Path | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.writer = self.new_writer()

    def prompt(self, text: str) -> list[int]:
        """Return a prompt's tokens, as the run rendered its records.

        Raises
        ------
        FedloraError
            When it is no UTF-8, or has a token that the embedding lacks.
        """
        require_unicode(text, "the prompt", "give it as UTF-8")
        return self._checked(prompt_ids(self.facts, self.tokenizer, text))

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return a conversation's tokens up to the assistant's turn.

        Raises
        ------
        FedloraError
            As ``prompt`` does, and when there is no chat template.
        """
        for message in messages:
            require_unicode(message["content"], f"the {message['role']}'s turn", "give it as UTF-8")
        return self._checked(chat_ids(self.tokenizer, messages))

    def write(
        self,
        ids: Sequence[int],
        sampler: Sampler,
        most: int,
        stops: Sequence[str] = (),
        history: DraftHistory | None = None,
        kept: KeptText | None = None,
    ) -> Completion:
        """Return the text that follows a prompt, which is written as it is iterated.

        Parameters
        ----------
        ids, sampler, most, stops, history, kept
            See ``Completion``.
        """
        decode = self.tokenizer.decode
        return Completion(self.writer, decode, ids, sampler, most, stops, history, kept)

    def end(self) -> None:
        """Close the session."""
        self.writer.close()

    def _checked(self, ids: list[int]) -> list[int]:
        rows = self.parts.checkpoint.size("vocab_size")
        if lacking := lacking_token(ids, self.tokenizer, rows):
            raise FedloraError(f"the prompt has {lacking}")
        return ids


def language_head_of(parts: EdgeParts, trained: torch.Tensor | None) -> LanguageHead:
    """Return the head with which a device reads representations.

    Parameters
    ----------
    parts
        The device's.
    trained
        Its weight, where it was trained; None for the checkpoint's own.
    """
    head = LanguageHead.of(parts.checkpoint, DTYPES[parts.scenario.model.dtype])
    if trained is not None:
        head.weight = nn.Parameter(trained.to(head.weight.dtype), requires_grad=False)
    return head


def writer_of(
    parts: EdgeParts,
    head: LanguageHead,
    row: RemoteRow,
    longest_draft: int,
    leaving: LeaveEarly | None = None,
) -> Writer:
    """Return what writes with a device's parts of a model.

    Parameters
    ----------
    parts, head
        The device's.
    row
        A session with a server.
    longest_draft
        Most tokens that are guessed at once; 0 for none.
    leaving
        When a token is taken before the last blocks; None for never.
    """
    assert parts.tokenizer is not None, "a language task has one"
    ends = end_tokens(parts.tokenizer, parts.checkpoint)
    writer = Writer(TextEnds(parts.model, head), row, ends, DraftPace(longest_draft))
    writer.leaving = leaving
    return writer
