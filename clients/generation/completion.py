"""One text as it is written: pieces that can be shown, and why it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Literal

from clients.generation.drafts import DraftHistory, Drafts
from clients.generation.kept_text import KeptText
from clients.generation.sampling import Sampler
from clients.generation.text_stream import TextStream
from clients.generation.writer import Writer

Finish = Literal["stop", "length"]


class Completion:
    """The text that follows a prompt; iterate once, closing the iterator ends it early.

    Parameters
    ----------
    writer
        Whose session goes on with it.
    decode
        Text of token ids.
    ids
        The prompt.
    sampler
        Chooses tokens.
    most
        Tokens at most.
    stops
        Texts at which it ends.
    history
        What was written before, for drafts; the text is added to it.
    kept
        Where each token is written down before it is shown; those that it holds begin the text, and
        the sampler has drawn them.

    Attributes
    ----------
    written
        Tokens so far, the one that ends the text included.
    finish
        ``stop`` at an end token or one of ``stops``, ``length`` at the most tokens or the model's
        last position.

    Raises
    ------
    FedloraError
        Where it is iterated, see ``Writer.tokens``.
    """

    def __init__(
        self,
        writer: Writer,
        decode: Callable[[Sequence[int]], str],
        ids: Sequence[int],
        sampler: Sampler,
        most: int,
        stops: Sequence[str] = (),
        history: DraftHistory | None = None,
        kept: KeptText | None = None,
    ) -> None:
        self._writer, self._ids, self._sampler, self._most = writer, ids, sampler, most
        self._stream = TextStream(decode, stops)
        self._history, self._kept = history, kept
        self.written: list[int] = []
        self.finish: Finish = "length"

    def __iter__(self) -> Iterator[str]:
        """Yield the text piece by piece; some are empty, where a character is not whole yet."""
        diary = self._writer.diary
        with diary.text(len(self._ids)) if diary else nullcontext():
            yield from self._pieces()

    def _pieces(self) -> Iterator[str]:
        for token in self._kept.tokens if self._kept else ():
            self.written.append(token)
            yield self._stream.push(token)
        over = len(self.written) >= self._most or self._stopped()
        begun = [*self._ids, *self.written]
        for token in () if over else self._tokens(begun):
            if self._kept is not None:
                self._kept.add(token)
            self.written.append(token)
            yield self._stream.push(token)
            if self._stream.stopped:
                break
        yield self._stream.rest()
        if self._stopped():
            self.finish = "stop"
        if self._history is not None:
            self._history.add(self.written)

    def _tokens(self, begun: Sequence[int]) -> Iterator[int]:
        drafts, left = Drafts(begun, self._history), self._most - len(self.written)
        return self._writer.tokens(begun, self._sampler, left, drafts)

    def _stopped(self) -> bool:
        """Tell whether a stop string or an end token was met."""
        last = self.written[-1:]
        return self._stream.stopped or any(self._writer.ends_with(token) for token in last)
