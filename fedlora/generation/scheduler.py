"""Who is computed next: whoever waits is taken into the next forward, long prompts in chunks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from fedlora.generation.bounds import GenerationRefused
from fedlora.generation.early_rows import EarlyRow
from fedlora.generation.engine import GenerationEngine, NewTokens, WaitingTokens
from fedlora.generation.returns import Returns
from fedlora.generation.sessions import Session

log = logging.getLogger("fedlora.generation")

_SHORT = 16  # tokens that are a step of a text with its drafts, rather than a prompt
_LEAST_SHARE = 16


@dataclass(eq=False)
class _Job:
    """New tokens of a session, and how far they are.

    ``early`` is content with what comes out where tokens may leave.
    """

    session: Session
    activation: torch.Tensor
    last: int
    early: bool
    answer: Future[torch.Tensor] = field(default_factory=Future)
    done: int = 0
    states: list[torch.Tensor] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Tokens that the first blocks have not seen."""
        return len(self.activation) - self.done

    @property
    def waiting(self) -> int:
        """Tokens that the last blocks have to see."""
        return 0 if self.early else self.session.pages.waiting

    def take(self, states: torch.Tensor, to_come: int) -> None:
        """Keep what is wanted of the row's next tokens, after which so many come."""
        wanted = self.last - to_come
        if wanted > 0:
            self.states.append(states[-wanted:])


class Scheduler:
    """Computes the requests of all sessions in one thread, as many as wait in one batch.

    A forward waits for devices that will be back in a moment, for less than it takes itself.

    Parameters
    ----------
    engine
        The blocks.
    chunk_tokens
        Tokens of prompts that one forward takes at most, so that texts that are being written do
        not wait for a long one.
    """

    def __init__(self, engine: GenerationEngine, chunk_tokens: int = 128) -> None:
        self._engine = engine
        self._chunk = chunk_tokens
        self._jobs: list[_Job] = []
        self._waiting = threading.Condition()
        self._returns = Returns()
        self._ended = self._lent = False
        self.forwards = 0
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(
        self,
        session: Session,
        activation: torch.Tensor,
        last: int,
        *,
        early: bool = False,
        here: bool = False,
    ) -> Future[torch.Tensor]:
        """Have a session's new tokens computed.

        Parameters
        ----------
        session
            Which has no other request under way.
        activation
            Shape (tokens, width), finite; no tokens where what waits is wanted.
        last
            How many representations are wanted, of the last tokens.
        early
            Give them after the first blocks, where tokens may leave, and let the tokens wait there.
        here
            Compute it in the caller's thread while nobody else waits, which saves two changes of
            threads a token. For few callers, as each then keeps torch's threads of its own.

        Returns
        -------
        Future
            Of shape (last, width); or of ``GenerationRefused``, where nothing was added.
        """
        job = _Job(session, activation, last, early)
        with self._waiting:
            if self._ended:
                raise GenerationRefused("failed", "the server ends; ask another")
            self._returns.came(session)
            alone = here and not (self._jobs or self._lent or self._others_come([job]) > 0)
            if alone:
                self._lent = True
            else:
                self._jobs.append(job)
                self._waiting.notify()
        if alone:
            self._compute_here(job)
        return job.answer

    def end(self) -> None:
        """End the thread; requests that wait are refused."""
        with self._waiting:
            self._ended = True
            self._waiting.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._waiting:
                while (self._lent or not self._jobs) and not self._ended:
                    self._waiting.wait()
                self._gather()
                if self._ended:
                    self._refuse_all()
                    return
                jobs = list(self._jobs)
            self._compute(jobs)
            with self._waiting:
                self._jobs = [job for job in self._jobs if not job.answer.done()]

    def _others_come(self, jobs: Sequence[_Job], waited_s: float = 0.0) -> float:
        """Return how many seconds requests had better wait for others; prompts never do."""
        if any(job.left > _SHORT or job.done for job in jobs):
            return 0.0
        return self._returns.worth_s([job.session for job in jobs], waited_s)

    def _gather(self) -> None:
        """Wait for requests that are worth it; the lock is held."""
        began, waited_s = time.monotonic(), 0.0
        while not self._ended and (seconds := self._others_come(self._jobs, waited_s)) > 0:
            self._waiting.wait(seconds)
            waited_s = time.monotonic() - began

    def _compute_here(self, job: _Job) -> None:
        """Compute a request in this thread; hand it over when another waits."""
        try:
            while not job.answer.done() and not self._jobs:
                self._compute([job])
        except BaseException:  # as Ctrl-C, which comes to the caller's thread
            self._fail(job, "the request was interrupted; send it again")
            raise
        finally:
            with self._waiting:
                self._lent = False
                if not job.answer.done():
                    self._jobs.insert(0, job)
                    if self._ended:
                        self._refuse_all()
                if self._jobs or self._ended:  # a thread that wakes for nothing takes the GIL
                    self._waiting.notify()

    def _refuse_all(self) -> None:
        for job in self._jobs:
            job.answer.set_exception(GenerationRefused("failed", "the server ends; ask another"))
        self._jobs.clear()

    def _compute(self, jobs: Sequence[_Job]) -> None:
        """Run a forward, and answer what it completes; nobody waits for a closed session's."""
        for job in jobs:
            if job.session.over:
                self._fail(job, "its session was closed meanwhile; open another")
        jobs = [job for job in jobs if not job.answer.done()]
        if not jobs:
            return
        taken = shares([(job, job.left) for job in jobs], self._chunk)
        begun, steps = time.monotonic(), all(job.left <= _SHORT for job in jobs)
        try:
            if taken:
                self._through_first(taken)
            taken = shares([(job, job.waiting) for job in jobs], self._chunk)
            if taken:
                self._through_last(taken)
        except Exception as error:  # whatever it is, who waits must hear of it
            log.exception("a forward of %d rows failed", len(taken))
            for job, _ in taken:
                self._fail(job, f"the blocks fail on a batch ({type(error).__name__}); try again")
        else:
            self.forwards += 1
            if steps:
                self._returns.took(time.monotonic() - begun)
        for job in jobs:
            if not job.answer.done() and job.left == job.waiting == 0:
                self._answer(job)

    def _through_first(self, taken: Sequence[tuple[_Job, int]]) -> None:
        rows = [
            NewTokens(job.session.pages, job.activation[job.done :][:count], job.session.ranks)
            for job, count in taken
        ]
        for (job, count), states in zip(taken, self._engine.forward(rows), strict=True):
            job.done += count
            if job.waiting == 0:  # else what is wanted comes out of the last blocks
                job.take(states, job.left)

    def _through_last(self, taken: Sequence[tuple[_Job, int]]) -> None:
        rows = []
        for job, count in taken:
            assert isinstance(job.session.pages, EarlyRow), "its tokens wait"
            rows.append(WaitingTokens(job.session.pages, count, job.session.ranks))
        for (job, _), states in zip(taken, self._engine.finish(rows), strict=True):
            job.take(states, job.left + job.waiting)

    def _answer(self, job: _Job) -> None:
        states = torch.cat(job.states)
        with self._waiting:
            self._returns.answered(job.session)
        if bool(torch.isfinite(states).all()):
            job.answer.set_result(states)
        else:
            self._fail(job, "the blocks make NaN or infinity of the tokens; send embeddings")

    def _fail(self, job: _Job, sentence: str) -> None:
        """Refuse a request and take back what was added of it."""
        job.session.pages.crop(job.session.pages.length - job.done)
        job.answer.set_exception(GenerationRefused("failed", sentence))


def shares(wanted: Sequence[tuple[_Job, int]], chunk: int) -> list[tuple[_Job, int]]:
    """Return which requests the next forward takes, and how many tokens of each.

    A step of a text is taken whole. Prompts share ``chunk`` tokens: those that came first are
    served, each with a share that lets a short one be done soon.

    Parameters
    ----------
    wanted
        Requests, and the tokens that each still has to be computed.
    chunk
        Most tokens of prompts.
    """
    taken = [(job, left) for job, left in wanted if 0 < left <= _SHORT]
    prompts = [(job, left) for job, left in wanted if left > _SHORT]
    share = max(_LEAST_SHARE, chunk // max(1, len(prompts)))
    room = max(chunk, 1)
    for job, left in prompts:
        count = min(left, share, room)
        if count == 0:
            break
        taken.append((job, count))
        room -= count
    return taken
