"""A finished run on one machine: server and device of a generation in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from clients.build import EdgeParts, load_parts
from clients.generation.completion import Completion
from clients.generation.drafts import DraftHistory
from clients.generation.ends import TextEnds
from clients.generation.pace import DraftPace
from clients.generation.remote_row import RemoteRow
from clients.generation.sampling import Sampler
from clients.generation.writer import Writer
from clients.owner import Door, OwnerTerms
from fedlora.commands.run_model import (
    TaskFacts,
    chat_ids,
    chosen_adapter,
    chosen_head,
    prompt_ids,
)
from fedlora.config import load_scenario
from fedlora.errors import FedloraError
from fedlora.generation.bounds import CacheBounds
from fedlora.generation.engine import GenerationEngine, check_generates
from fedlora.generation.server import GenerationServer
from fedlora.registry import use_python_path
from fedlora.report import RunFolder
from fedlora.split import DTYPES, Checkpoint, LanguageHead, model_folder
from fedlora.tasks import Tokenizer, end_tokens, lacking_token
from fedlora.unicode import require_unicode

_CLIENT = "0"


@dataclass
class LocalModel:
    """Both sides of a run's model, and the session between them.

    Attributes
    ----------
    facts
        What the model is for.
    parts
        The device's.
    tokenizer
        The model's.
    server
        The blocks.
    new_writer
        Makes one that writes texts in a session of its own.
    writer
        The one of ``write``.
    """

    facts: TaskFacts
    parts: EdgeParts
    tokenizer: Tokenizer
    server: GenerationServer
    new_writer: Callable[[], Writer]

    def __post_init__(self) -> None:
        self.writer = self.new_writer()

    @classmethod
    def open(
        cls,
        folder: Path,
        client: str | None,
        rank: int | None,
        model: str,
        longest_draft: int,
        bounds: CacheBounds | None = None,
    ) -> LocalModel:
        """Open a run.

        Parameters
        ----------
        folder
            Of a finished run.
        client, rank
            Whose adapter, or which rank, to use.
        model
            The backbone on this machine, where it is not at the run's ``model.path``.
        longest_draft
            Most tokens that are guessed at once; 0 for none.
        bounds
            How much sessions may hold.

        Raises
        ------
        FedloraError
            When the run has no adapter or cannot generate, or the backbone is not here.
        """
        run = RunFolder(folder)
        scenario = load_scenario(run.scenario)
        link = scenario.link
        if ":" in scenario.task.kind + link.activation + link.representation:
            use_python_path(scenario.python_path)
        adapter, ranks = chosen_adapter(run, client, rank)
        place = model_folder(model or scenario.model.path, adapter.revision)
        scenario = replace(scenario, model=replace(scenario.model, path=str(place)))
        check_generates(Checkpoint(place), scenario)
        parts = load_parts(scenario)
        tokenizer = parts.tokenizer
        assert tokenizer is not None, "a language task has one"
        torch.set_num_threads(scenario.compute.threads or torch.get_num_threads())
        engine = GenerationEngine(parts.checkpoint, scenario)
        engine.load(adapter)
        server = GenerationServer(
            engine, scenario, parts.identity, ranks={_CLIENT: ranks}, bounds=bounds
        )
        head = LanguageHead.of(parts.checkpoint, DTYPES[scenario.model.dtype])
        if (trained := chosen_head(run, client)) is not None:
            head.weight = nn.Parameter(trained.weight.to(head.weight.dtype), requires_grad=False)
        ends = end_tokens(tokenizer, parts.checkpoint)

        def new_writer() -> Writer:
            row = RemoteRow(
                server.carry,
                _CLIENT,
                Door(OwnerTerms()),
                parts.identity,
                link,
                parts.model.geometry,
            )
            return Writer(TextEnds(parts.model, head), row, ends, DraftPace(longest_draft))

        return cls(TaskFacts.of(scenario), parts, tokenizer, server, new_writer)

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
    ) -> Completion:
        """Return the text that follows a prompt, which is written as it is iterated.

        Parameters
        ----------
        ids, sampler, most, stops, history
            See ``Completion``.
        """
        decode = self.tokenizer.decode
        return Completion(self.writer, decode, ids, sampler, most, stops, history)

    def end(self) -> None:
        """Close the session and end the server's thread."""
        self.writer.close()
        self.server.end()

    def _checked(self, ids: list[int]) -> list[int]:
        rows = self.parts.checkpoint.size("vocab_size")
        if lacking := lacking_token(ids, self.tokenizer, rows):
            raise FedloraError(f"the prompt has {lacking}")
        return ids
