"""Held-out evaluation at a client, which keeps the labels and counts what is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clients.cut_layer import CutLayer
from clients.head import ClientHead
from clients.held_out_texts import HeldOutTexts
from clients.owner import Private, PrivateSamples, Reporting
from fedlora.errors import ProtocolError
from fedlora.link import EvalBegin, Frame, messages as m
from fedlora.tasks import Counts, Sample, ScoreCounts, counts_of


class Evaluation:
    """Answers ``eval_begin`` and ``eval``.

    Parameters
    ----------
    cut
        What crosses the cut.
    head
        The client's head.
    held_out
        Held-out samples.
    train_samples
        Number of training samples, after which held-out ones are numbered.
    scores
        Whether histograms of scores are asked for.
    texts
        Writes on after held-out prompts; None where that is not asked for.
    """

    def __init__(
        self,
        cut: CutLayer,
        head: ClientHead,
        held_out: PrivateSamples,
        train_samples: int,
        *,
        scores: bool = False,
        texts: HeldOutTexts | None = None,
    ) -> None:
        self.held_out = held_out
        self._cut, self._head, self._first = cut, head, train_samples
        self._left: list[int] = []
        self._rows = 0
        self._counts: list[Private[list[Counts]]] = []
        self._tells_scores = scores
        self._scores: list[Private[list[ScoreCounts]]] = []
        self._texts, self._completes = texts, False
        self._written: PrivateSamples | None = None

    @property
    def _reporting(self) -> Reporting:
        return self._cut.release.reporting

    def begin(self, frame: Frame) -> Frame:
        """Begin an evaluation, where the owner lets there be one."""
        request = EvalBegin.from_frame(frame)
        self._rows = max(1, request.rows)
        self._counts, self._scores, self._left = [], [], []
        self._written, self._completes = None, False
        if len(self.held_out) and self._reporting.begin():
            # Together with other clients' rows of like length, which costs the least padding.
            lengths = self.held_out.lengths
            self._left = sorted(range(len(lengths)), key=lengths.__getitem__)
            self._completes = self._texts is not None and bool(request.texts)
            if self._texts is not None and self._completes:
                self._texts.begin()
        return self._next(frame)

    def go_on(self, frame: Frame) -> Frame:
        """Count a batch, and send the next one."""
        if self._texts is not None and self._written is not None:
            self._written = None
            self._texts.go_on(lambda rows: self._next_tokens(frame, rows))
            return self._next(frame)
        batch = self._left[: self._rows]
        if not batch:
            raise ProtocolError(f"client {self._cut.client} has no open evaluation batch")
        lengths = self.held_out.lengths_of(batch)
        own = self.held_out.take(batch)
        self._counts.append(own.map(lambda samples: self._measure(frame, lengths, samples)))
        if self._tells_scores and self._reporting.sigma is None:
            self._scores.append(own.map(lambda samples: self._score(frame, lengths, samples)))
        del self._left[: self._rows]
        return self._next(frame)

    def _next(self, frame: Frame) -> Frame:
        batch = self._left[: self._rows]
        if batch:
            numbers = [self._first + place for place in batch]
            self._cut.heed(frame)
            named = self._cut.names_rows(frame)
            _, parts = self._cut.activation(self.held_out, batch, numbers, train=False, named=named)
            return self._cut.reply(m.ACTIVATION, frame, tensors=parts)
        if self._texts is not None and self._completes:
            rows = self._texts.rows(self._rows)
            if len(rows):
                return self._row_so_far(frame, rows)
        counts, self._counts = self._counts, []
        told = self._reporting.tell(counts, len(self._cut.model.task.labels))
        fields = {"counts": told}
        if self._tells_scores:
            scores, self._scores = self._scores, []
            fields["scores"] = self._reporting.tell_scores(scores)
        if self._texts is not None and self._completes:
            fields["texts"] = self._reporting.tell_texts(self._texts.told())
        return self._cut.reply(m.METRICS, frame, fields)

    def _row_so_far(self, frame: Frame, rows: PrivateSamples) -> Frame:
        """Send texts that are being written, of which the next token is wanted."""
        self._written = rows
        self._cut.heed(frame)
        chosen = list(range(len(rows)))
        _, parts = self._cut.activation(rows, chosen, chosen, train=False)
        fields = {"written": self._cut.release.door.public(True)}
        return self._cut.reply(m.ACTIVATION, frame, fields, parts)

    @torch.no_grad()
    def _next_tokens(self, frame: Frame, rows: Sequence[Sample]) -> torch.Tensor:
        """Return the logits of each row's next token, shape (rows, vocabulary)."""
        lengths = [row.length for row in rows]
        z = self._cut.representation(frame, rows)
        hidden = self._cut.model.to_head(z, lengths)
        last = torch.tensor(lengths).cumsum(0) - 1
        logits: torch.Tensor = self._cut.head(self._head.module)(hidden[last])
        return logits

    @torch.no_grad()
    def _score(
        self, frame: Frame, lengths: Sequence[int], samples: Sequence[Sample]
    ) -> list[ScoreCounts]:
        z = self._cut.representation(frame, samples)
        logits = self._cut.head(self._head.module)(self._cut.model.to_head(z, lengths))
        return [ScoreCounts.of(logits, [int(sample.target) for sample in samples])]

    @torch.no_grad()
    def _measure(
        self, frame: Frame, lengths: Sequence[int], samples: Sequence[Sample]
    ) -> list[Counts]:
        """Return the counts of a batch: as one, or of each sample where each is clipped."""
        z = self._cut.representation(frame, samples)
        task, head = self._cut.model.task, self._cut.head(self._head.module)
        hidden = self._cut.model.to_head(z, lengths)
        if self._reporting.sigma is None:
            return [counts_of(task, head, hidden, samples)]
        return [counts_of(task, head, hidden[i : i + 1], [s]) for i, s in enumerate(samples)]
