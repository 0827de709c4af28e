"""Something that writes texts, many at once: a writer for each, those of ended ones used again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from clients.gateway.faults import RequestFault
from clients.gateway.requests import TextRequest
from clients.generation import Completion, Sampler, Writer
from fedlora.errors import FedloraError
from fedlora.generation.bounds import GenerationRefused
from fedlora.tasks import Tokenizer

_GOES_ON = 0.5


class TextModel(Protocol):
    """A split model as a device has it, its blocks in this process or on a server."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        ...

    def prompt(self, text: str) -> list[int]:
        """Return a prompt's tokens, as the run rendered its records."""
        ...

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return a conversation's tokens up to the assistant's turn."""
        ...

    def new_writer(self) -> Writer:
        """Return one that writes texts in a session of its own."""
        ...


class Writers:
    """The writers of one model, each with what its last text left in its session.

    Parameters
    ----------
    model
        Whose texts they write.
    most
        Writers at most; who asks for more than are free is at fault.
    """

    def __init__(self, model: TextModel, most: int) -> None:
        self._model, self._most = model, most
        self._lock = threading.Lock()
        self._free: list[Writer] = []  # the one that was used last stands last
        self._made = 0

    def begin(self, request: TextRequest) -> Running:
        """Begin a text: find its tokens and a writer for it; nothing is computed yet.

        Raises
        ------
        FedloraError
            When the prompt or the conversation cannot be rendered.
        """
        with self._lock:  # rendering a template is for one at a time
            if request.messages and not self._model.tokenizer.chat.templates:
                raise RequestFault(
                    "the model's tokenizer has no chat template, so that it holds no "
                    "conversations; ask /v1/completions",
                    "messages",
                )
            if request.messages:
                ids = self._model.conversation(request.messages)
            else:
                ids = self._model.prompt(request.prompt)
        return Running(self, self._take(ids), self._model.tokenizer, ids, request)

    def give(self, writer: Writer) -> None:
        """Take back a writer."""
        with self._lock:
            self._free.append(writer)

    def close_free(self) -> None:
        """Give back what the sessions hold in which nothing is written."""
        with self._lock:
            free, self._free = self._free, []
        for writer in free:
            with contextlib.suppress(FedloraError):  # one that the server has no more
                writer.close()
        with self._lock:
            self._free = free + self._free

    def _take(self, ids: Sequence[int]) -> Writer:
        """Return the free writer whose text goes on with a prompt; else another, as its may go on.

        All conversations begin with a template's first words, so that little in common means
        nothing. Where no more writers can be made, the one is taken that was used longest ago.
        """
        with self._lock:
            best = max(self._free, key=lambda writer: writer.share(ids), default=None)
            if best is not None and best.share(ids) < _GOES_ON:
                best = self._free[0]
                if self._made < self._most:
                    best = None
            if best is not None:
                self._free.remove(best)
                return best
            self._made += 1  # and no more than may be: no more texts are begun than are written
        try:
            return self._model.new_writer()
        except BaseException:
            with self._lock:
                self._made -= 1
            raise


class Running:
    """A text that is being written.

    Parameters
    ----------
    writers, writer
        Whose writer it is.
    tokenizer
        The model's.
    ids
        Tokens of the prompt.
    request
        What was asked for.
    """

    def __init__(
        self,
        writers: Writers,
        writer: Writer,
        tokenizer: Tokenizer,
        ids: Sequence[int],
        request: TextRequest,
    ) -> None:
        self._writers, self._writer = writers, writer
        self.prompt_tokens = len(ids)
        self.text = Completion(
            writer,
            tokenizer.decode,
            ids,
            Sampler(request.sampling),
            request.most_tokens,
            request.stops,
        )
        self._pieces: Iterator[str] = iter(self.text)

    def next(self) -> str | None:
        """Return the next piece that has characters; None at the end.

        Where there is no room for the first tokens, sessions are closed in which nothing is
        written, and it is tried once more.

        Raises
        ------
        FedloraError
            See ``Writer.tokens``.
        """
        try:
            return next((piece for piece in self._pieces if piece), None)
        except GenerationRefused as error:
            if error.refusal != "full" or self.text.written:
                raise
        self._writers.close_free()
        self._pieces = iter(self.text)
        return next((piece for piece in self._pieces if piece), None)

    def usage(self) -> dict[str, int]:
        """Return what it took, as OpenAI's API has it."""
        written = len(self.text.written)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    def end(self) -> None:
        """End the text, wherever it is, and give back its writer."""
        self._pieces = iter(())
        self._writers.give(self._writer)
