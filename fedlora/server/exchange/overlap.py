"""Overlap: while the server works on one half of a step's clients, the other computes and sends.

Both halves see the same adapter, and their gradients make one update together. So nothing is stale:
only the order in which they are added up differs from one batch of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from fedlora.config import Scenario
from fedlora.link import Frame, Step
from fedlora.server.compute import ClientRows, SharedHead, SplitEngine
from fedlora.server.exchange import head_space
from fedlora.server.exchange.answers import Answer, Answers
from fedlora.server.exchange.batches import Batches
from fedlora.server.exchange.cohort import Asked, Cohort
from fedlora.server.exchange.spoiled import SoundStep
from fedlora.server.exchange.uploads import Activation


@dataclass(frozen=True)
class Part:
    """Clients of a step whose representations are on their way.

    Attributes
    ----------
    batch
        What they uploaded.
    z
        What each was sent.
    step
        Goes back over them.
    asked
        The requests.
    """

    batch: Mapping[str, Activation]
    z: Mapping[str, torch.Tensor]
    step: SoundStep
    asked: Asked


@dataclass
class Exchanged:
    """What came back from all parts of an exchange, by client.

    Attributes
    ----------
    replies, answers
        The frames, and what was read of them.
    upstream
        Gradients at the activations, where the embedding trains.
    tokens
        That went through the blocks.
    """

    replies: dict[str, Frame] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    upstream: dict[str, torch.Tensor] | None = None
    tokens: int = 0


def halves(batch: Mapping[str, Activation]) -> list[dict[str, Activation]]:
    """Return a batch in two halves, in order, whose rows differ least; one client stays whole.

    Which client is in which follows from the batch alone, so that a run can be repeated.
    """
    own = list(batch.items())
    if len(own) < 2:
        return [dict(own)]
    sums = list(accumulate(len(activation.lengths) for _, activation in own))
    place = min(range(1, len(own)), key=lambda n: abs(2 * sums[n - 1] - sums[-1]))
    return [dict(own[:place]), dict(own[place:])]


class StepExchange:
    """Sends representations and collects what comes back for them.

    Parameters
    ----------
    scenario, engine, cohort, batches, answers
        As for ``StepLoop``, and who reads the answers.
    """

    def __init__(
        self,
        scenario: Scenario,
        engine: SplitEngine,
        cohort: Cohort,
        batches: Batches,
        answers: Answers,
    ) -> None:
        self._scenario, self._engine, self._cohort = scenario, engine, cohort
        self._batches, self._answers = batches, answers

    def run(
        self,
        batch: Mapping[str, Activation],
        ranks: Mapping[str, Sequence[int]],
        exchange: int,
        step: Step,
        head: SharedHead | None,
        *,
        train: bool,
    ) -> Exchanged:
        """Go forward, to the clients and back; in halves where these overlap.

        Parameters
        ----------
        batch
            What each client uploaded.
        ranks
            For each, its rank at every projection.
        exchange
            Number of the exchange in the run.
        step
            What all requests have in common.
        head
            The head that is shared every step, if there is one.
        train
            Whether the adapters train.
        """
        # What noise does to a whole batch is measured on one.
        whole = not self._scenario.train.overlap or self._answers.probes(exchange)
        parts = [
            # The second half draws dropout of its own.
            self._send(own, ranks, exchange + (number << 31), step, head, train=train)
            for number, own in enumerate([batch] if whole else halves(batch))
        ]
        done = Exchanged(tokens=sum(sum(batch[c].lengths) for part in parts for c in part.z))
        for part in parts:
            beside = [other.asked for other in parts if other is not part]
            replies = self._cohort.collect(part.asked, beside)
            self._take(part, replies, exchange, head, done, train=train)
        if not done.replies:
            late = self._cohort.one_of([c for part in parts for c in part.z])
            for part in parts:
                replies = {c: reply for c, reply in late.items() if c in part.z}
                self._take(part, replies, exchange, head, done, train=train)
        return done

    def _take(
        self,
        part: Part,
        replies: Mapping[str, Frame],
        exchange: int,
        head: SharedHead | None,
        done: Exchanged,
        *,
        train: bool,
    ) -> None:
        """Read the answers of a part, and go back over it."""
        answers = self._answers.read(replies, part.z, head, part.batch, train=train)
        done.replies |= replies
        done.answers |= answers
        if not (train and answers):
            return
        upstream = part.step.backward(
            {
                client: None if own.gradient is None else part.batch[client].up(own.gradient)
                for client, own in answers.items()
            },
            {client: own.weight for client, own in answers.items()},
            self._answers.probe(exchange, answers, part.z, head),
        )
        if upstream is not None:
            done.upstream = {**(done.upstream or {}), **upstream}

    def _send(
        self,
        batch: Mapping[str, Activation],
        ranks: Mapping[str, Sequence[int]],
        exchange: int,
        step: Step,
        head: SharedHead | None,
        *,
        train: bool,
    ) -> Part:
        """Go forward, and send every client its representation."""
        rows = [ClientRows(a.packed, a.lengths, ranks[c], c, a.keepable) for c, a in batch.items()]
        sound = SoundStep(self._engine, self._cohort)
        whole = sound.forward(rows, train=train, exchange=exchange)
        z = {client: batch[client].down(part) for client, part in whole.items()}
        down, shared = z, head.tensors() if head else {}
        if head is not None and self._scenario.link.r_cut:
            weight = head.linear_weight()
            down, shared = {c: head_space.coordinates(part, weight) for c, part in z.items()}, {}
        requests = {
            client: dataclasses.replace(
                step,
                rank=self._told(ranks[client]),
                **self._batches.fields(client),
                representation=self._batches.representations.pack(client, batch[client], part),
                head=shared,
            )
            for client, part in down.items()
        }
        return Part(batch, z, sound, self._cohort.send(requests))

    def _told(self, ranks: Sequence[int]) -> float | None:
        """Return the mean rank where clients spread their privacy budget by it."""
        if self._scenario.privacy.spread == "even":
            return None
        return sum(ranks) / len(ranks)
