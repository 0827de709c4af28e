"""The client: a state machine from request frame to reply frame.

The same object answers an in-process link, an edge host of a simulation and a device's stream.
One training step is in ``_step``: loss, gradient at the cut, release, head update, next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from clients.batches import BatchStream
from clients.edge_model import EdgeModel
from clients.head import ClientHead
from clients.release import GradientRelease
from fedlora.config import Scenario
from fedlora.errors import ProtocolError
from fedlora.link import messages as m
from fedlora.link.codec import create_codec, put, take
from fedlora.link.frame import Frame
from fedlora.privacy.ledger import BudgetSpentError
from fedlora.ranks.reports import DataStatistics
from fedlora.tasks.base import Counts, Sample

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
        Returns the fields of the round's report (channel state, statistics) for a round number; a
        device that measures its link puts its own in place.
    statistics
        What a report tells of its text; None where the run does not ask or the owner does not
        allow it.
    """

    def __init__(
        self,
        name: str,
        number: int,
        scenario: Scenario,
        model: EdgeModel,
        head: ClientHead,
        train: Sequence[Sample],
        held_out: Sequence[Sample],
        release: GradientRelease,
        report: Callable[[int], Fields],
        statistics: DataStatistics | None = None,
    ) -> None:
        self.name = name
        self.scenario = scenario
        self.model = model
        self.head = head
        self.held_out = held_out
        self.batches = BatchStream(train, scenario.train.batch_size, scenario.seed, number)
        self.release = release
        self.report = report
        self.statistics = statistics
        self._codecs = {
            kind: create_codec(getattr(scenario.link, kind))
            for kind in ("activation", "representation", "gradient")
        }
        self._batch: list[int] = []
        self._pending: torch.Tensor | None = None
        self._losses: list[tuple[float, float]] = []
        self._evaluated = 0
        self._by_length: list[int] = []
        self._eval_rows = 0
        self._counts: Counts | None = None
        self._samples_seen = 0
        self._handlers: dict[str, Callable[[Frame], Frame]] = {
            m.WELCOME: self._ready,
            m.PHASE: self._phase,
            m.ROUND: self._round,
            m.BATCH: self._first_batch,
            m.STEP: self._step,
            m.EMBEDDING: self._embedding,
            m.HEAD: self._head,
            m.ROUND_END: self._round_end,
            m.EVAL_BEGIN: self._eval_begin,
            m.EVAL: self._eval,
            m.END: self._end,
        }

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
        try:
            reply = handler(frame)
        except BudgetSpentError as spent:
            self.release.close()
            reply = Frame(m.LEAVE, fields={"reason": str(spent)})
        return Frame(reply.kind, self.name, frame.seq, reply.fields, reply.tensors)

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
        }

    def load_state_dict(self, state: Fields) -> None:
        """Take back what ``state_dict`` gave; raises ``FedloraError`` for another head's state."""
        self.restart()
        self.head.load_state_dict(state["head"])
        self.batches.position = state["position"]
        self._samples_seen = state["samples"]

    def _ready(self, frame: Frame) -> Frame:
        """Say that all is ready, and what a measured link carries before the first round."""
        del frame
        if self.scenario.channel.model != "measured":
            return Frame(m.READY)
        return Frame(m.READY, fields={"channel": self.report(0)["channel"]})

    def _phase(self, frame: Frame) -> Frame:
        del frame
        self.restart()
        self.release.begin_phase()
        return Frame(m.READY, tensors=self.head.weights())

    def _round(self, frame: Frame) -> Frame:
        self._losses = []
        report = self.report(_integer(frame, "round"))
        self.release.begin_round(report.get("channel"))
        return Frame(m.REPORT, fields=report)

    def _first_batch(self, frame: Frame) -> Frame:
        del frame
        self.head.begin_batches()
        return Frame(m.ACTIVATION, tensors=self._next_activation())

    def _step(self, frame: Frame) -> Frame:
        """Compute the gradient at the cut from the representation, and fetch the next batch."""
        samples = self._open_batch()
        step = _integer(frame, "step")
        self.head.adopt(frame.tensors)
        z = self._representation(frame, samples)
        self.release.begin_step(frame.fields.get("rank"), self._batch)
        loss = self.model.loss(self.head.module, z, samples, sample_mean=self.release.sample_mean)
        self._losses.append((loss.total, loss.weight))
        self._samples_seen += len(samples)
        reply: dict[str, torch.Tensor] = {}
        if frame.fields.get("gradient", True):
            rows = self.model.rows_of(_lengths(samples))
            released = self.release(loss.gradient, rows, self._batch)
            reply |= put("gradient", released, self._codecs["gradient"])
        reply |= self.head.update(loss.weight, step, last=bool(frame.fields.get("update", True)))
        self._batch = []
        if frame.fields.get("next", False):
            reply |= self._next_activation()
        fields: dict[str, Any] = {"weight": loss.weight, **self.release.spent()}
        if self.release.reports_losses:
            fields["loss"] = loss.total
        return Frame(m.GRADIENT, fields=fields, tensors=reply)

    def _embedding(self, frame: Frame) -> Frame:
        """Train the token embedding with dL/de, then fetch the next batch if asked."""
        if self._pending is None:
            raise ProtocolError(f"client {self.name} has no batch whose embedding could train")
        gradient = take(frame.tensors, "embedding", self._codecs["gradient"], _shape(self._pending))
        self._pending.backward(gradient.to(self._pending.dtype))  # type: ignore[no-untyped-call]
        self._pending = None
        self.head.step_embedding(_integer(frame, "step"), bool(frame.fields.get("update", True)))
        if frame.fields.get("next", False):
            return Frame(m.ACTIVATION, tensors=self._next_activation())
        return Frame(m.READY)

    def _head(self, frame: Frame) -> Frame:
        self.head.adopt(frame.tensors)
        return Frame(m.READY)

    def _round_end(self, frame: Frame) -> Frame:
        if self._batch:
            self.batches.back()
            self._batch = []
        self._pending = None
        fields: dict[str, Any] = {"samples": self._samples_seen}
        if self.release.reports_losses and self._losses:
            weight = sum(w for _, w in self._losses)
            fields["loss"] = sum(total for total, _ in self._losses) / weight
        weights = self.head.weights() if frame.fields.get("weights", False) else {}
        return Frame(m.ROUND_REPORT, fields=fields, tensors=weights)

    def _eval_begin(self, frame: Frame) -> Frame:
        self._eval_rows = max(1, _integer(frame, "rows"))
        self._evaluated = 0
        # Together with other clients' rows of like length, which costs the least padding.
        lengths = _lengths(self.held_out)
        self._by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        self._counts = None
        if not self.release.reports_metrics:
            return Frame(m.METRICS, fields={"counts": None})
        return self._next_evaluation()

    def _eval(self, frame: Frame) -> Frame:
        samples = [self.held_out[i] for i in self._evaluation_batch()]
        if not samples:
            raise ProtocolError(f"client {self.name} has no open evaluation batch")
        with torch.no_grad():
            z = self._representation(frame, samples)
            hidden = self.model.to_head(z, _lengths(samples))
            counts = self.model.task.measure(self.head.module, hidden, samples)
            self._counts = counts if self._counts is None else self._counts + counts
        self._evaluated += len(samples)
        return self._next_evaluation()

    def _end(self, frame: Frame) -> Frame:
        del frame
        self.release.close()
        fields = {"samples": self._samples_seen, **self.release.spent()}
        return Frame(m.RESULT, fields=fields)

    def _next_activation(self) -> dict[str, torch.Tensor]:
        if self._batch:
            raise ProtocolError(f"client {self.name} has an open batch; send its step first")
        self._batch = self.batches.indices()
        train = self.scenario.train.embedding
        return self._activation(self._open_batch(), self._batch, train=train)

    def _next_evaluation(self) -> Frame:
        batch = self._evaluation_batch()
        if batch:
            samples = [self.held_out[i] for i in batch]
            numbers = [len(self.batches.samples) + i for i in batch]
            return Frame(m.ACTIVATION, tensors=self._activation(samples, numbers, train=False))
        counts = self._counts.to_dict() if self._counts is not None else None
        return Frame(m.METRICS, fields={"counts": counts})

    def _evaluation_batch(self) -> list[int]:
        return self._by_length[self._evaluated : self._evaluated + self._eval_rows]

    def _activation(
        self, samples: Sequence[Sample], numbers: Sequence[int], *, train: bool
    ) -> dict[str, torch.Tensor]:
        ids = torch.tensor([token for sample in samples for token in sample.ids])
        lengths = _lengths(samples)
        with torch.set_grad_enabled(train):
            e = self.model.front(ids, lengths)
        self._pending = e if train else None
        released = self.release.activation(e, lengths, numbers)
        tensors = put("activation", released, self._codecs["activation"])
        tensors["lengths"] = torch.tensor(lengths, dtype=torch.int32)
        return tensors

    def _representation(self, frame: Frame, samples: Sequence[Sample]) -> torch.Tensor:
        shape = (sum(self.model.rows_of(_lengths(samples))), self.model.width)
        return take(frame.tensors, "representation", self._codecs["representation"], shape)

    def _open_batch(self) -> list[Sample]:
        if not self._batch:
            raise ProtocolError(f"client {self.name} has no open batch; ask for one first")
        return [self.batches.samples[index] for index in self._batch]


def _lengths(samples: Sequence[Sample]) -> list[int]:
    return [len(sample.ids) for sample in samples]


def _integer(frame: Frame, name: str) -> int:
    value = frame.fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ProtocolError(f"{frame.kind} needs {name} as an integer from 0, not {value!r}")
    return value


def _shape(x: torch.Tensor) -> tuple[int, int]:
    return int(x.shape[0]), int(x.shape[1])
