"""A run on the server, whatever links its clients come over."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from fedlora.channel import ChannelState
from fedlora.config import Scenario
from fedlora.errors import ProtocolError
from fedlora.link import PROTOCOL, ClientLink, End, Frame, Identity, check_identity
from fedlora.observe.observer import ClientStatus
from fedlora.ranks import RankSpace
from fedlora.server.air import Air
from fedlora.server.compute import SplitEngine
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.member import Member
from fedlora.server.exchange.watch import Watch
from fedlora.server.ranking import Ranking
from fedlora.server.training import Recorder, Training
from fedlora.split import Checkpoint, check_conformity, model_folder
from fedlora.tasks import (
    check_labels,
    check_length,
    check_pool,
    check_text_scores,
    task_class,
    tokenizer_digest,
)

_MAX_ROWS = 1 << 40


class ServerRun:
    """Loads the server's part of the model, admits clients and trains.

    Parameters
    ----------
    scenario
        What to do.
    recorder
        Where progress goes.

    Raises
    ------
    FedloraError
        When the model or the scenario cannot be used.
    """

    def __init__(self, scenario: Scenario, recorder: Recorder) -> None:
        torch.set_num_threads(scenario.compute.threads or torch.get_num_threads())
        self.scenario = scenario
        self.checkpoint = Checkpoint(model_folder(scenario.model.path))
        check_length(scenario.task, self.checkpoint)
        check_pool(scenario.task, self.checkpoint)
        check_text_scores(scenario)
        task = task_class(scenario.task.kind)
        if task.labelled:
            check_labels(scenario.task.labels)
        check_conformity(self.checkpoint, language=task.language())
        self.identity = Identity(
            PROTOCOL,
            self.checkpoint.config_digest,
            self.checkpoint.weights_digest,
            tokenizer_digest(task, self.checkpoint),
            scenario.model.precision,
        )
        self.engine = SplitEngine(self.checkpoint, scenario)
        self.air = Air(scenario)
        space = RankSpace.of(
            [(p.name, p.d_in, p.d_out) for p in self.engine.projections],
            self.engine.blocks.family.layers,
            r_max=scenario.lora.r_max,
            bits_per_parameter=scenario.channel.bits_per_parameter,
        )
        link = scenario.link
        self.watch = Watch(self.air.book)
        self.cohort = Cohort(link.step_timeout_s, self.watch.book, link.max_misses, link.patience)
        self.training = Training(
            scenario, self.engine, self.cohort, self.air, Ranking(scenario, space), recorder
        )

    def admit(self, hello: Frame) -> dict[str, Any]:
        """Check a client's ``hello`` and return the fields of its ``welcome``.

        Raises
        ------
        ProtocolError
            When it speaks another protocol, holds another checkpoint, or its name or sizes are
            not usable.
        """
        check_identity(self.identity, hello.fields)
        if not hello.client.isdecimal() or len(hello.client) > 9:
            raise ProtocolError(
                f"client id {hello.client[:40]!r} is not a number; set partition-id to one"
            )
        for name in ("rows", "held_out_rows"):
            value = hello.fields.get(name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_ROWS:
                raise ProtocolError(f"{name} is {value!r:.40}; it counts rows from 0")
        most = self.scenario.evaluate.max_rows
        if hello.fields["held_out_rows"] > most:
            raise ProtocolError(
                f"held_out_rows is {hello.fields['held_out_rows']}; evaluate.max_rows is {most}, "
                "hold out fewer or raise it"
            )
        return {"rounds": self.scenario.train.rounds, "steps": self.scenario.train.steps}

    def join(self, link: ClientLink, hello: Frame, ready: Frame | None = None) -> None:
        """Take in an admitted client.

        Parameters
        ----------
        link, hello
            Its link and its first frame.
        ready
            Its answer to ``welcome``, which says what a measured link carries; in one process there
            is none, and the first round's report says so.

        Raises
        ------
        ProtocolError
            When links are measured and it does not say, or what its privacy may come to.
        """
        if self.air.channel.measured and ready is not None:
            found = ready.fields.get("channel")
            self.air.channel.observe(int(link.client), ChannelState.from_dict(found))
        if self.scenario.privacy.enabled:
            planned = self.training.spending.note_plan(link.client, hello)
            self.training.recorder.append_event("budget", client=link.client, **planned)
        rows = int(hello.fields["rows"])
        self.training.spending.note_rows([rows])
        self.cohort.add(Member(link, rows, int(hello.fields["held_out_rows"])))

    def clients(self) -> dict[str, ClientStatus]:
        """Return the state of every client at this moment."""
        return self.watch.snapshot(self.cohort)

    def end(self) -> dict[str, Mapping[str, Any]]:
        """End every session, and return the clients' last words by client."""
        results = self.cohort.ask(self.cohort.clients, End())
        self.cohort.close()
        self.training.batches.close()
        if self.scenario.privacy.enabled:  # a last upload may have been charged and not come
            for client, reply in results.items():
                with suppress(ProtocolError):
                    self.training.spending.note(client, reply)
        return {client: reply.fields for client, reply in results.items()}
