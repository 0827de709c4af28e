"""Held-out prompts that are completed greedily: what is written, and how it is beside the record.

The server computes each row anew from its beginning at every token, as blocks in training keep no
keys and values. A text is as long as prompt and text may be within ``task.max_length``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from clients.owner import Private, PrivateSamples
from fedlora.tasks import IGNORED, Sample, TextCounts

log = logging.getLogger("fedlora.edge")


@dataclass(frozen=True)
class Speech:
    """What turns tokens into texts.

    Attributes
    ----------
    decode
        Text of token ids.
    end_ids
        Tokens that end a text.
    """

    decode: Callable[[Sequence[int]], str]
    end_ids: frozenset[int]


@dataclass(frozen=True)
class _Text:
    """A text that is being written.

    Attributes
    ----------
    prompt, reference, written
        Token ids.
    room
        Tokens that may still come.
    """

    prompt: tuple[int, ...]
    reference: tuple[int, ...]
    room: int
    written: tuple[int, ...] = ()

    @property
    def row(self) -> Sample:
        """What goes up: the representation of its last token alone is asked for."""
        ids = self.prompt + self.written
        return Sample(ids, (*[IGNORED] * (len(ids) - 1), 0))


@dataclass
class HeldOutTexts:
    """The texts of one evaluation.

    Parameters
    ----------
    held_out
        Held-out samples.
    speech
        The tokenizer's.
    prompts
        Prompts that are completed at most.
    most_tokens
        Tokens of a text at most.
    max_length
        Tokens of prompt and text at most.
    """

    held_out: PrivateSamples
    speech: Speech
    prompts: int
    most_tokens: int
    max_length: int
    _waiting: list[int] = field(default_factory=list)
    _open: Private[list[_Text]] = field(default_factory=lambda: Private([]))
    _counts: list[Private[list[TextCounts]]] = field(default_factory=list)

    def begin(self) -> None:
        """Begin anew."""
        self._waiting = list(range(len(self.held_out)))[: self.prompts]
        self._open, self._counts = Private([]), []

    def rows(self, most: int) -> PrivateSamples:
        """Return the rows of which the next token is wanted; none at the end.

        Parameters
        ----------
        most
            Rows at most.
        """
        while not len(rows := self._rows()) and self._waiting:
            batch, self._waiting = self._waiting[:most], self._waiting[most:]
            self._open = self.held_out.take(batch).map(self._begun)
        return rows

    def go_on(self, logits: Callable[[Sequence[Sample]], torch.Tensor]) -> None:
        """Take in the next token of each open row.

        Parameters
        ----------
        logits
            Of the last token of each of some rows, shape (rows, vocabulary).
        """
        longer = self._open.map(lambda texts: self._longer(texts, logits))
        self._open = longer.map(lambda texts: [t for t in texts if not self._over(t)])
        self._counts.append(longer.map(self._counted))

    def told(self) -> list[Private[list[TextCounts]]]:
        """Return the sums over all texts that are whole."""
        counts, self._counts = self._counts, []
        return counts

    def _rows(self) -> PrivateSamples:
        return PrivateSamples.of(self._open.map(lambda texts: [text.row for text in texts]))

    def _begun(self, samples: Sequence[Sample]) -> list[_Text]:
        """Return the texts to write; a record that ``task.max_length`` has cut has no reference."""
        texts = []
        for sample in samples:
            targets = sample.target
            assert isinstance(targets, tuple)
            first = next(n for n, target in enumerate(targets) if target != IGNORED)
            last = next(n for n in range(first, len(targets)) if targets[n] == IGNORED)
            prompt, room = sample.ids[: first + 1], self.max_length - first - 1
            if sample.cut or room < 1:
                continue
            texts.append(_Text(prompt, targets[first:last], min(room, self.most_tokens)))
        if len(texts) < len(samples):
            log.warning(
                "%d held-out records are longer than task.max_length %d and are not completed",
                *(len(samples) - len(texts), self.max_length),
            )
        return texts

    def _longer(
        self, texts: Sequence[_Text], logits: Callable[[Sequence[Sample]], torch.Tensor]
    ) -> list[_Text]:
        chosen = logits([text.row for text in texts]).argmax(1).tolist()
        return [
            replace(text, written=(*text.written, token))
            for text, token in zip(texts, chosen, strict=True)
        ]

    def _over(self, text: _Text) -> bool:
        return text.written[-1] in self.speech.end_ids or len(text.written) == text.room

    def _counted(self, texts: Sequence[_Text]) -> list[TextCounts]:
        pairs = [
            (self.speech.decode(text.written).strip(), self.speech.decode(text.reference).strip())
            for text in texts
            if self._over(text)
        ]
        return [TextCounts.of(pairs)] if pairs else []
