"""Writing a text token by token: what to send, what to draft, what to believe."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch

from clients.generation.drafts import Drafts
from clients.generation.ends import TextEnds
from clients.generation.leaving import LeaveEarly
from clients.generation.pace import DraftPace
from clients.generation.remote_row import RemoteRow
from clients.generation.sampling import Sampler
from clients.generation.text_diary import TextDiary
from clients.owner import Private
from fedlora.errors import FedloraError
from fedlora.generation.bounds import GenerationRefused

_REPLAYS = 16
"""How often a text is sent again from its beginning before its servers are given up."""


class Writer:
    """Generates texts in one session, which keeps what two of them begin with alike.

    Drafts change no token: each place is drawn once from its own distribution, whether a draft was
    there or not, and a draft counts where it is what was drawn. For a guess that is one token this
    is the rejection rule of speculative sampling (Leviathan et al. 2023, theorem 3.5), with one
    seed for both.

    Parameters
    ----------
    ends
        The device's parts of the model.
    row
        The server's.
    end_ids
        Tokens that end a text.
    pace
        Chooses the length of drafts.

    Attributes
    ----------
    leaving
        When a token is taken before the last blocks; None for never.
    early
        Tokens so far that were.
    diary
        Where texts are written down for the owner; None, where both sides are in one process.
    """

    def __init__(
        self, ends: TextEnds, row: RemoteRow, end_ids: Collection[int], pace: DraftPace
    ) -> None:
        self._ends, self.row = ends, row
        self.leaving: LeaveEarly | None = None
        self.early = 0
        self._seconds = 0.0  # that exchanges took
        self._end_ids = frozenset(end_ids)
        self.pace = pace
        self.diary: TextDiary | None = None
        self._held: list[int] = []

    def tokens(
        self, prompt: Sequence[int], sampler: Sampler, most: int, drafts: Drafts | None = None
    ) -> Iterator[int]:
        """Yield the tokens that follow a prompt, the one that ends the text included.

        Parameters
        ----------
        prompt
            Token ids, at least one.
        sampler
            Chooses.
        most
            Tokens to generate at most; the model's last position ends a text as well.
        drafts
            Guesses, given the prompt; None for none.

        Raises
        ------
        FedloraError
            When the prompt is empty, or longer than the model; what the server refuses.
        """
        if not prompt:
            raise FedloraError("the prompt is empty, and no token comes before it; write one")
        self._open()
        if len(prompt) > self.row.most_tokens:
            raise FedloraError(
                f"the prompt has {len(prompt)} tokens, and the model {self.row.most_tokens} "
                "positions; shorten it"
            )
        ids, end = list(prompt), len(prompt) + most
        guess: list[int] = []
        kept = _common(self._held, ids[:-1])
        while True:
            first, accepted, before = kept == len(ids) - 1, 0, self._seconds
            for place, scores in enumerate(self._scores(ids[kept:] + guess, kept, 1 + len(guess))):
                ids.append(sampler.pick(ids, scores))
                if drafts is not None:
                    drafts.add(ids[-1])
                right = place < len(guess) and ids[-1] == guess[place]
                accepted += right
                over = ids[-1] in self._end_ids or len(ids) == end
                if not right or over:
                    break
                yield ids[-1]
            if first:
                self.pace.note(len(guess), accepted, self._seconds - before)
            yield ids[-1]
            if over or len(ids) > self.row.most_tokens:
                return
            kept = len(ids) - 1
            room = min(end - len(ids) - 1, self.row.most_tokens - len(ids))
            guess = drafts.propose(min(self.pace.length(), room)) if drafts else []

    def ends_with(self, token: int) -> bool:
        """Tell whether a token ends a text."""
        return token in self._end_ids

    def share(self, ids: Sequence[int]) -> float:
        """Return the share of what the session holds with which a prompt begins; 0 of nothing."""
        if not (self._held and self.row.is_open):
            return 0.0
        return _common(self._held, ids) / len(self._held)

    def close(self) -> None:
        """Give back what the server holds."""
        self.row.close()
        self._held = []

    def _open(self) -> None:
        if not self.row.is_open:
            self.row.open()
            self._held = []

    def _scores(self, ids: Sequence[int], position: int, last: int) -> Iterator[torch.Tensor]:
        """Send tokens from a place on; yield the logits of the last ones, as they are asked for."""
        leaving = self.leaving
        if leaving is None:
            yield from self._exchange(ids, position, last)
            return
        rest: torch.Tensor | None = None
        for place, scores in enumerate(self._exchange(ids, position, last, leaving.after)):
            if leaving.sure(scores):
                self.early += 1
                yield scores
                continue
            if rest is None:
                rest = self._rest(last - place)
            yield rest[place - last]

    def _exchange(
        self, ids: Sequence[int], position: int, last: int, after: int = 0
    ) -> torch.Tensor:
        """Send tokens from a place on; return the logits of the last ones.

        A session that is gone, with its server or from it, is opened anew, and told from its
        beginning.
        """
        with self._clock():
            try:
                return self._send(ids, position, last, after)
            except GenerationRefused as error:
                if error.refusal != "gone":
                    raise
            return self._again([*self._held[:position], *ids], last, after)

    def _rest(self, last: int) -> torch.Tensor:
        """Return the logits of the last tokens after all blocks, of which they have seen some."""
        with self._clock():
            try:
                return self._ends.logits(self.row.rest(last), 0, last)
            except GenerationRefused as error:
                if error.refusal != "gone":
                    raise
            return self._again(list(self._held), last)

    def _again(self, ids: Sequence[int], last: int, after: int = 0) -> torch.Tensor:
        for left in range(_REPLAYS, 0, -1):
            try:
                self.row.open()
                self._held = []
                return self._send(ids, 0, last, after)
            except GenerationRefused as error:
                if error.refusal != "gone" or left == 1:
                    raise
        raise AssertionError("the last time returns or raises")

    def _send(self, ids: Sequence[int], position: int, last: int, after: int) -> torch.Tensor:
        del self._held[position:]  # which the server forgets first, whatever comes then
        wanted = len(ids) if self._ends.needs_all else last
        embedded = Private(self._ends.embed(ids, position))
        states = self.row.extend(position, embedded, wanted, after=after)
        self._held += ids
        begin = position + len(ids) - wanted
        return self._ends.logits(states, begin, last)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - began


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    pairs = zip(held, wanted, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(held), len(wanted)))
