"""A finished run on one machine: server and device of a generation in one process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clients.build import load_parts
from clients.generation.leaving import LeaveEarly
from clients.generation.remote_row import RemoteRow
from clients.generation.text_model import TextModel, language_head_of, writer_of
from clients.generation.writer import Writer
from clients.owner import Door, OwnerTerms
from fedlora.commands.prompts import TaskFacts
from fedlora.commands.run_model import chosen_adapter, chosen_head
from fedlora.config import load_scenario
from fedlora.generation.bounds import CacheBounds
from fedlora.generation.engine import GenerationEngine, check_generates
from fedlora.generation.server import GenerationServer
from fedlora.registry import use_python_path
from fedlora.report import RunFolder
from fedlora.split import Checkpoint, model_folder

_CLIENT = "0"


@dataclass
class LocalModel(TextModel):
    """Both sides of a run's model, and the session between them.

    Attributes
    ----------
    server
        The blocks; what else there is, see ``TextModel``.
    """

    server: GenerationServer

    @classmethod
    def open(
        cls,
        folder: Path,
        client: str | None,
        rank: int | None,
        model: str,
        longest_draft: int,
        bounds: CacheBounds | None = None,
        leaving: LeaveEarly | None = None,
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
        leaving
            When a token is taken before the last blocks; None for never.

        Raises
        ------
        FedloraError
            When the run has no adapter or cannot generate, or the backbone is not here.
        """
        run = RunFolder(folder)
        scenario = load_scenario(run.scenario)
        link = scenario.link
        named = scenario.task.kind + link.activation + link.representation
        use_python_path(scenario.python_path, needed=":" in named)
        adapter, ranks = chosen_adapter(run, client, rank)
        place = model_folder(model or scenario.model.path, adapter.revision)
        scenario = replace(scenario, model=replace(scenario.model, path=str(place)))
        check_generates(Checkpoint(place), scenario)
        parts = load_parts(scenario)
        tokenizer = parts.tokenizer
        assert tokenizer is not None, "a language task has one"
        torch.set_num_threads(scenario.compute.threads or torch.get_num_threads())
        after = leaving.after if leaving else 0
        engine = GenerationEngine(parts.checkpoint, scenario, leave_after=after)
        engine.load(adapter)
        server = GenerationServer(
            engine, scenario, parts.identity, ranks={_CLIENT: ranks}, bounds=bounds
        )
        trained = chosen_head(run, client)
        head = language_head_of(parts, trained.weight if trained else None)
        geometry = parts.model.geometry

        def new_writer() -> Writer:
            door = Door(OwnerTerms())
            row = RemoteRow(server.carry, _CLIENT, door, parts.identity, link, geometry)
            return writer_of(parts, head, row, longest_draft, leaving)

        return cls(TaskFacts.of(scenario), parts, tokenizer, new_writer, server)

    def end(self) -> None:
        """Close the session and end the server's thread."""
        super().end()
        self.server.end()
