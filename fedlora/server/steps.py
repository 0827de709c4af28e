"""The step loop: forward over all clients, gradients back from the clients, one update.

One step of split learning for all clients in one batch: their smashed data go forward through the
server's blocks, representations go down, the gradients at the cut layer come up and go backward,
and the adapters take one step. Stragglers are taken in again with the batch that they send late.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from fedlora.config import Scenario
from fedlora.errors import FedloraError, NoClientsLeft, ProtocolError
from fedlora.link import Batch, Embedding, Frame, Step, create_codec, messages as m, pack
from fedlora.lora.adamw import clip_global_norm
from fedlora.server.compute import SharedHead, SplitEngine
from fedlora.server.exchange.answers import Answer, Answers, check_gradient
from fedlora.server.exchange.batches import Batches
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.overlap import StepExchange
from fedlora.server.exchange.spending import Spending
from fedlora.server.exchange.uploads import Activation, read_named

log = logging.getLogger("fedlora.server")

Ranks = Mapping[str, Sequence[int]]


@dataclass
class StepTally:
    """What the steps of a round came to.

    Attributes
    ----------
    tokens
        Tokens that went through the blocks.
    rows
        Training rows of each client.
    lengths
        Tokens of each of them, in the order of training.
    asked
        Who was to take part.
    missed
        Steps that each of them was left out of, as it was late or lost.
    losses
        Mean loss of each step; None where a client does not tell its loss.
    """

    tokens: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    asked: Sequence[str] = ()
    missed: Counter[str] = field(default_factory=Counter)
    losses: list[float | None] = field(default_factory=list)

    @property
    def loss(self) -> float | None:
        """Mean of the steps' losses, or None when one is unknown."""
        known = [loss for loss in self.losses if loss is not None]
        return sum(known) / len(known) if known and len(known) == len(self.losses) else None


class StepLoop:
    """Runs steps with whoever is connected.

    Parameters
    ----------
    scenario
        Steps, accumulation, codecs and limits.
    engine
        The server's compute.
    cohort
        The clients.
    batches
        Reads what they upload.
    on_step
        Called after every optimiser step with its number in the run, its loss, and its tokens.

    Attributes
    ----------
    spending
        What the clients say that their privacy has cost.
    """

    def __init__(
        self,
        scenario: Scenario,
        engine: SplitEngine,
        cohort: Cohort,
        batches: Batches,
        on_step: Callable[[int, float | None, int], None],
    ) -> None:
        self.scenario = scenario
        self.engine = engine
        self.cohort = cohort
        self.on_step = on_step
        self.spending = Spending(scenario)
        link = scenario.link
        self._batches = batches
        self._back = create_codec(**link.codec("gradient"))
        self._ends = create_codec(**link.codec("end_gradient"))
        self._answers = Answers(scenario, engine, cohort, self.spending)
        self._exchange = StepExchange(scenario, engine, cohort, batches, self._answers)
        self._front: SharedHead | None = None

    def run(
        self,
        clients: Sequence[str],
        ranks: Ranks,
        first_step: int,
        head: SharedHead | None,
        *,
        train: bool,
        front: SharedHead | None = None,
    ) -> StepTally:
        """Run the optimiser steps of one round.

        Parameters
        ----------
        clients
            Who takes part.
        ranks
            For each, its rank at every projection.
        first_step
            Number of the first step in the run.
        head
            The head that is shared every step, if there is one.
        train
            False runs the frozen backbone and trains heads only.
        front
            The front that is shared every step, if there is one: the next activation waits for it.

        Raises
        ------
        NoClientsLeft
            When no client is left.
        FedloraError
            When a simulation takes longer than its limits.
        """
        config, tally = self.scenario.train, StepTally(asked=clients)
        limit_s = self.scenario.link.round_timeout_s or math.inf
        deadline = time.monotonic() + limit_s
        self._front = front
        batch = self._activations(self._first_batches(clients))
        for step in range(first_step, first_step + config.steps):
            if step > first_step and time.monotonic() > deadline:
                self._cut_short(first_step + config.steps - step, limit_s)
                break
            loss_sum: float | None = 0.0
            weight_sum, tokens = 0.0, 0
            for part in range(config.accumulate):
                update = part == config.accumulate - 1
                more = not (update and step == first_step + config.steps - 1)
                batch = self._catch_up(clients, batch)
                if not batch:
                    raise self._deserted(step)
                wanted = self._answers.wants_gradients(head, train=train)
                request = Step(step, update, wanted, next=more and not config.embedding)
                exchange = step * config.accumulate + part
                done = self._exchange.run(batch, ranks, exchange, request, head, train=train)
                if not done.answers:
                    raise self._deserted(step)
                gradients = {c: own for c, own in done.answers.items() if c in self.cohort}
                for client, own in gradients.items():
                    if head is not None:
                        head.add(client, own.head, own.weight)
                    weight_sum += own.weight
                    loss = own.loss
                    loss_sum = None if loss is None or loss_sum is None else loss_sum + loss
                    lengths = batch[client].lengths
                    tally.rows[client] = tally.rows.get(client, 0) + len(lengths)
                    tally.lengths.setdefault(client, []).extend(lengths)
                if update:
                    tally.missed.update(c for c in clients if c not in gradients)
                tokens += done.tokens
                replies: Mapping[str, Frame] = done.replies
                if config.embedding:
                    replies = self._embeddings(done.upstream, batch, request, exchange, more=more)
                    self._add_fronts(replies, gradients)
                if update:
                    self._update(step, head, train=train)
                batch = self._next(replies) if more else {}
            loss = None if loss_sum is None or not weight_sum else loss_sum / weight_sum
            tally.losses.append(loss)
            tally.tokens += tokens
            self.on_step(step, loss, tokens)
        return tally

    def _next(self, replies: Mapping[str, Frame]) -> dict[str, Activation]:
        """Read the next batch of who is left; ask for it where it waits for a common front."""
        left = {client: reply for client, reply in replies.items() if client in self.cohort}
        return self._activations(left if self._front is None else self._first_batches(left))

    def _embeddings(
        self,
        upstream: Mapping[str, torch.Tensor] | None,
        batch: Mapping[str, Activation],
        step: Step,
        exchange: int,
        *,
        more: bool,
    ) -> dict[str, Frame]:
        """Send dL/de where the embedding trains; the answer brings the next batch."""
        if upstream is None:  # the frozen-backbone baseline leaves the embedding alone
            return self._first_batches(batch) if more else {}
        more = more and self._front is None
        requests = {
            client: Embedding(
                step.step,
                step.update,
                more,
                **self._batches.fields(client),
                embedding=pack(
                    "embedding", gradient, self._back, self._rounding_key(client, exchange)
                ),
            )
            for client, gradient in upstream.items()
            if client in self.cohort
        }
        return self.cohort.exchange(requests)

    def _rounding_key(self, client: str, exchange: int) -> bytes:
        """Return what dL/de is rounded by at random: the same when a run is repeated."""
        return hashlib.sha256(f"{self.scenario.seed}/{exchange}/{client}".encode()).digest()

    def _add_fronts(self, replies: Mapping[str, Frame], answers: Mapping[str, Answer]) -> None:
        """Add the gradients of a front that is shared every step; drop who answers wrongly."""
        if self._front is None:
            return
        for client, reply in replies.items():
            if client not in answers:
                continue
            try:
                own = read_named(reply, m.FRONT_GRADIENT, self._front.shapes, self._ends)
                check_gradient(own, answers[client].weight, "front")
                self._front.add(client, own, answers[client].weight)
            except ProtocolError as error:
                self.cohort.drop(client, str(error))

    def _catch_up(
        self, clients: Sequence[str], batch: Mapping[str, Activation]
    ) -> dict[str, Activation]:
        """Take in who was late and has answered; wait for them where nobody else is left."""
        found = dict(batch)
        while self.cohort.late:
            replies = {
                client: reply
                for client, reply in self.cohort.catch_up(wait=not found).items()
                if client in clients
            }
            for client, reply in replies.items():
                if reply.kind == m.GRADIENT and self.scenario.privacy.enabled:
                    with suppress(ProtocolError):
                        self.spending.note(client, reply)
            ready = {c: reply for c, reply in replies.items() if "lengths" in reply.tensors}
            others = [client for client in replies if client not in ready]
            ready |= self._first_batches(others, waiting=found)
            found |= self._activations(ready, waiting=found)
            if found or not self.cohort.late:
                break
        return {client: found[client] for client in self.cohort.clients if client in found}

    def _cut_short(self, steps: int, limit_s: float) -> None:
        """Say that a round's time is up; a simulation ends, as its clock is not this one."""
        told = f"the round's steps took more than link.round_timeout_s = {limit_s:g} s"
        if not self.cohort.deployed:
            raise FedloraError(f"{told}; set it higher or to 0, a simulation leaves no step out")
        log.warning("%s; its last %d steps are left out", told, steps)

    def _deserted(self, step: int) -> NoClientsLeft:
        return NoClientsLeft(
            f"no client is left at step {step + 1} ({self.cohort.reasons()}); mend that and start "
            "again"
        )

    def _update(self, step: int, head: SharedHead | None, *, train: bool) -> None:
        ends = [end for end in (head, self._front) if end is not None]
        shared = [gradient for end in ends for gradient in end.averaged()]
        if train:
            self.engine.update.step(step, shared)
        elif self.scenario.train.clip_norm > 0 and shared:
            clip_global_norm(shared, self.scenario.train.clip_norm)
        for end in ends:
            end.step(step)

    def _activations(
        self, replies: Mapping[str, Frame], waiting: Iterable[str] = ()
    ) -> dict[str, Activation]:
        """Read the next batch of every client that answered; drop who answers wrongly."""
        return self._batches.read(replies, self.scenario.train.batch_size, waiting)

    def _first_batches(
        self, clients: Iterable[str], waiting: Iterable[str] = ()
    ) -> dict[str, Frame]:
        """Ask clients for a batch, with the front that they share every step."""
        front = self._front.tensors() if self._front is not None else {}
        asked = {c: Batch(**self._batches.fields(c), front=front) for c in clients}
        return self.cohort.exchange(asked, waiting)
