"""The client: a state machine from request frame to reply frame.

Whatever it computes of its samples is ``Private``, and leaves by ``self.door`` alone. The same
object answers an in-process link, an edge host of a simulation and a device's stream. One training
step is in ``_step``: loss, gradient at the cut, release, head update, next batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from clients.cut_layer import CutLayer, Parts
from clients.edge_model import EdgeModel
from clients.evaluation import Evaluation
from clients.head import ClientHead
from clients.held_out_texts import HeldOutTexts
from clients.owner import (
    STATISTICS,
    Door,
    Leaving,
    Private,
    PrivateSamples,
    log_whole,
    together,
)
from clients.release.base import GradientRelease
from clients.reports import Report
from fedlora.batch_order import BatchStream
from fedlora.config import Scenario
from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import (
    Codec,
    Embedding,
    Frame,
    Round,
    RoundEnd,
    Step,
    messages as m,
    pack_ends,
    unpack,
    unpack_ends,
)
from fedlora.privacy.ledger import BudgetSpentError
from fedlora.ranks import DataStatistics
from fedlora.tasks import Classification, Sample, TaskLoss

Fields = Mapping[str, Any]


class EdgeClient:
    """One client's data, head and place in the session.

    Parameters
    ----------
    name
        Identifier of the client.
    number
        Its number, from 0; seeds the order of its samples.
    scenario
        The run's scenario.
    model
        Frozen parts; where the embedding trains, this client's own copy.
    head
        The client's head and its optimiser.
    train, held_out
        Encoded samples.
    release
        Decides what of a batch may leave: clipping, noise and the budget.
    report
        Returns the channel of a round, by its number; a device that measures its link puts its own
        in place.
    statistics
        What a report tells of its text; None where the run does not ask or the owner does not
        allow it.
    texts
        Writes on after held-out prompts; None where the run does not ask for it.
    """

    def __init__(
        self,
        name: str,
        number: int,
        scenario: Scenario,
        model: EdgeModel,
        head: ClientHead,
        train: PrivateSamples,
        held_out: PrivateSamples,
        release: GradientRelease,
        report: Report,
        statistics: Private[DataStatistics] | None = None,
        texts: HeldOutTexts | None = None,
    ) -> None:
        self.name = name
        self.scenario = scenario
        self.model = model
        self.head = head
        self.train = train
        self.held_out = held_out
        self.batches = BatchStream(train, scenario.train.batch_size, scenario.seed, number)
        self.report = report
        self.statistics = statistics
        self._cut = CutLayer(name, scenario, model, release)
        self._evaluation = Evaluation(
            self._cut,
            head,
            held_out,
            len(train),
            scores=scenario.evaluate.scores and isinstance(model.task, Classification),
            texts=texts,
        )
        self._batch: list[int] = []
        self._pending: Private[torch.Tensor] | None = None
        self._losses: list[tuple[Leaving[float], float]] = []
        self._samples_seen = 0
        self._handlers: dict[str, Callable[[Frame], Frame]] = {
            m.WELCOME: self._ready,
            m.PHASE: self._phase,
            m.ROUND: self._round,
            m.BATCH: self._first_batch,
            m.STEP: self._step,
            m.AGAIN: self._again,
            m.EMBEDDING: self._embedding,
            m.HEAD: self._head,
            m.ROUND_END: self._round_end,
            m.EVAL_BEGIN: self._evaluation.begin,
            m.EVAL: self._evaluation.go_on,
            m.END: self._end,
        }

    @property
    def release(self) -> GradientRelease:
        """What decides what of a batch may leave."""
        return self._cut.release

    def use(self, release: GradientRelease) -> None:
        """Let another release decide, in a simulation that studies one."""
        self._cut.release = release

    @property
    def door(self) -> Door:
        """Makes everything that leaves."""
        return self._cut.release.door

    def handle(self, frame: Frame) -> Frame:
        """Answer one request; with ``leave`` where the privacy budget does not pay for it.

        Raises
        ------
        ProtocolError
            When the request is unknown, out of order, or carries tensors of the wrong shape.
        """
        handler = self._handlers.get(frame.kind)
        if handler is None:
            raise ProtocolError(f"client {self.name} knows no request {frame.kind[:40]!r}")
        self._cut.note(frame)
        try:
            return handler(frame)
        except BudgetSpentError as spent:
            if not self.door.terms.simulated:  # the server is told the kind alone
                log_whole(f"client {self.name} leaves the run", spent)
            self.release.close()
            return self.door.leave(self.name, frame.seq, spent)

    def restart(self) -> None:
        """Start anew: initial head, first sample."""
        self.head.reset()
        self.batches.position = 0
        self._batch = []

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two rounds, for the client's own disk."""
        return {
            "head": self.head.state_dict(),
            "position": self.batches.position,
            "samples": self._samples_seen,
            **self._cut.state_dict(),
        }

    def load_state_dict(self, state: Fields) -> None:
        """Take back what ``state_dict`` gave; raises ``FedloraError`` for another head's state."""
        self.restart()
        self.head.load_state_dict(state["head"])
        self.batches.position = state["position"]
        self._samples_seen = state["samples"]
        self._cut.load_state_dict(state)

    def forget_sent(self) -> None:
        """Take it that the server keeps nothing of this client."""
        self._cut.forget()

    def _ready(self, frame: Frame) -> Frame:
        """Say that all is ready, and what a measured link carries before the first round."""
        if self.scenario.channel.model != "measured":
            return self._cut.reply(m.READY, frame)
        return self._cut.reply(m.READY, frame, {"channel": self.door.public(self._channel(0))})

    def _phase(self, frame: Frame) -> Frame:
        self.restart()
        self._cut.forget()
        self.release.begin_phase()
        return self._cut.reply(m.READY, frame, tensors=self._shared_weights())

    def _round(self, frame: Frame) -> Frame:
        self._losses = []
        channel = self._channel(Round.from_frame(frame).round)
        self.release.begin_round(channel)
        fields: Parts = {"channel": self.door.public(channel), "statistics": self._statistics()}
        fields |= dict.fromkeys(("device", "budget_bits"), self.door.public(None))
        return self._cut.reply(m.REPORT, frame, fields)

    def _first_batch(self, frame: Frame) -> Frame:
        self.head.begin_batches()
        self._adopt(frame)
        return self._cut.reply(m.ACTIVATION, frame, tensors=self._next_activation(frame))

    def _again(self, frame: Frame) -> Frame:
        """Send rows once more that the server has lost, as they were sent before."""
        numbers = self._cut.sent.again(frame.tensors.get("ids"))
        held_out = min(numbers) >= len(self.train)
        first = len(self.train) if held_out else 0
        if not held_out and max(numbers) >= len(self.train):
            raise ProtocolError("rows to train on and held-out rows are asked for in one")
        samples = self.held_out if held_out else self.train
        chosen = [number - first for number in numbers]
        _, parts = self._cut.activation(samples, chosen, numbers, train=False, named=True)
        return self._cut.reply(m.ACTIVATION, frame, tensors=parts)

    def _step(self, frame: Frame) -> Frame:
        """Compute the gradient at the cut from the representation, and fetch the next batch."""
        batch = self._open_batch()
        lengths = self.train.lengths_of(batch)
        request = Step.from_frame(frame)
        self._adopt(frame)
        self.release.begin_step(request.rank, batch)
        loss = self.train.take(batch).map(lambda samples: self._loss(frame, samples))
        self._samples_seen += len(batch)
        tensors: Parts = {}
        if request.gradient:
            rows = self.model.rows_of(lengths)
            released = self.release(loss.map(lambda own: own.gradient), rows, batch)
            tensors |= self._cut.gradient(released, loss, self.batches.position)
        weight = self._weight(loss, len(batch))
        learnt = self.head.update(weight.value, request.step, last=request.update)
        gradient = self.release.exact(learnt)
        if gradient is not None:
            tensors |= self._end_gradient(gradient)
        self._batch = []
        if request.next:
            tensors |= self._next_activation(frame)
        fields = {"weight": weight, **self._spent()}
        total = self.release.exact(loss.map(lambda own: own.total))
        if total is not None:
            fields["loss"] = _finite(total)
            self._losses.append((total, weight.value))
        return self._cut.reply(m.GRADIENT, frame, fields, tensors)

    def _embedding(self, frame: Frame) -> Frame:
        """Train the front with dL/de, then fetch the next batch if asked."""
        if self._pending is None:
            raise ProtocolError(f"client {self.name} has no batch whose embedding could train")
        request, shape = Embedding.from_frame(frame), self._pending.map(_shape)
        gradient = shape.map(
            lambda size: unpack(request.embedding, "embedding", self._cut.codecs["gradient"], size)
        )
        together([self._pending, gradient]).map(_backward)
        self._pending = None
        own = self.release.exact(self.head.step_front(request.step, request.update))
        if request.next:
            return self._cut.reply(m.ACTIVATION, frame, tensors=self._next_activation(frame))
        return self._cut.reply(m.READY, frame, tensors=self._end_gradient(own) if own else {})

    def _head(self, frame: Frame) -> Frame:
        self._adopt(frame)
        return self._cut.reply(m.READY, frame)

    def _round_end(self, frame: Frame) -> Frame:
        if self._batch:
            self.batches.back()
            self._batch = []
        self._pending = None
        fields: Parts = {"samples": self.door.public(self._samples_seen)}
        if self._losses:
            weight = sum(w for _, w in self._losses)
            total = together([Private(loss.value) for loss, _ in self._losses])
            mean = self.release.exact(total.map(lambda losses: sum(losses) / weight))
            assert mean is not None
            fields["loss"] = _finite(mean)
        shares = ["round"] if self.head.front_share != "personal" else []  # only what is averaged
        weights: Parts = {}
        if RoundEnd.from_frame(frame).weights:
            weights = self._shared_weights(*shares, codec=self._cut.ends["end_weight"])
        return self._cut.reply(m.ROUND_REPORT, frame, fields, weights)

    def _end(self, frame: Frame) -> Frame:
        self.release.close()
        fields = {"samples": self.door.public(self._samples_seen), **self._spent()}
        return self._cut.reply(m.RESULT, frame, fields)

    def _loss(self, frame: Frame, samples: Sequence[Sample]) -> TaskLoss:
        z, mean = self._cut.representation(frame, samples, train=True), self.release.sample_mean
        head = self._cut.head(self.head.module)
        loss = self.model.loss(head, z, samples, sample_mean=mean)
        return dataclasses.replace(loss, gradient=self._cut.answered(loss.gradient, samples))

    def _weight(self, loss: Private[TaskLoss], samples: int) -> Leaving[float]:
        """Return what the loss is divided by: under noise the samples, whatever is in them."""
        if self.release.sample_mean:
            return self.door.public(float(samples))
        weight = self.release.exact(loss.map(lambda own: own.weight))
        assert weight is not None
        return weight

    def _next_activation(self, frame: Frame) -> Parts:
        if self._batch:
            raise ProtocolError(f"client {self.name} has an open batch; send its step first")
        self._batch = self.batches.indices()
        train = self.scenario.train.embedding
        self._cut.heed(frame)
        named = self._cut.names_rows(frame) and not train
        e, tensors = self._cut.activation(
            self.train, self._batch, self._batch, train=train, named=named
        )
        tensors |= self._cut.open(self._batch if named else None)
        self._pending = e if train else None
        return tensors

    def _adopt(self, frame: Frame) -> None:
        """Take the common weights of head and front that a request holds, if any."""
        codec = self._cut.ends["end_weight"]
        self.head.adopt(unpack_ends(frame.tensors, self.head.shapes, codec))

    def _end_gradient(self, own: Leaving[dict[str, torch.Tensor]]) -> Parts:
        """Return the gradient of a shared end as it leaves."""
        codec, key = self._cut.ends["end_gradient"], self._cut.rounding_key(self.batches.position)
        return dict(own.encode(lambda tensors: pack_ends(tensors, codec, key)))

    def _shared_weights(self, *shares: str, codec: Codec | None = None) -> Parts:
        """Return the weights of what is shared as they may leave, in fp32 or by a codec.

        Those that have never learnt here follow from the seed and from what the server sent.
        """

        def written(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if codec is None:
                return tensors
            # At random, as a round may move a weight by less than a level.
            return pack_ends(tensors, codec, self._cut.rounding_key(self.batches.position))

        if not self.head.trained:
            return dict(self.door.untrained(self.head, *shares).encode(written))
        released = self.release.exact(self.head.weights(*shares))
        if released is None:
            raise FedloraError(
                "the server asks for a head that was trained on labels as they are; nothing leaves"
            )
        return dict(released.encode(written))

    def _statistics(self) -> Leaving[dict[str, Any] | None]:
        if self.statistics is None:
            return self.door.public(None)
        return self.door.allowed(self.statistics.map(dataclasses.asdict), STATISTICS)

    def _channel(self, round_: int) -> dict[str, Any]:
        """Return the state of the client's own channel in a round."""
        return dataclasses.asdict(self.report(round_))

    def _spent(self) -> Parts:
        return {name: self.door.public(value) for name, value in self.release.spent().items()}

    def _open_batch(self) -> list[int]:
        if not self._batch:
            raise ProtocolError(f"client {self.name} has no open batch; ask for one first")
        return self._batch


def _shape(x: torch.Tensor) -> tuple[int, int]:
    return int(x.shape[0]), int(x.shape[1])


def _backward(pair: Sequence[torch.Tensor]) -> None:
    e, gradient = pair
    e.backward(gradient.to(e.dtype))  # type: ignore[no-untyped-call]


def _finite(loss: Leaving[float]) -> Leaving[float]:
    """Return a loss that may leave; refuse one that no frame can hold, whatever made it so."""
    if not math.isfinite(loss.value):
        raise ProtocolError(
            f"the loss is {loss.value}: what the server sent overflows here, or training has "
            "diverged; lower train.lr"
        )
    return loss
