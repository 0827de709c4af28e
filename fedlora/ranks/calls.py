"""Calling code that may raise, hang or answer nonsense."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

from fedlora.errors import FedloraError, described
from fedlora.machine import stretch, waited_s
from fedlora.ranks.space import RankDecision, RankSpace


class CallError(Exception):
    """A call to a strategy raised or took too long; the message says which."""


class Caller:
    """Runs one call at a time in a thread and gives up waiting when it takes too long.

    Python cannot end a thread. While one that was given up still runs, further calls fail at once.

    Parameters
    ----------
    time_limit_s
        Longest that a call may take, in seconds; those in which it was ready and the machine had
        no processor for it are not counted.
    """

    def __init__(self, time_limit_s: float) -> None:
        self.time_limit_s = time_limit_s
        self._running: Future[Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether a call that was given up still runs."""
        return self._running is not None and not self._running.done()

    def call(self, name: str, function: Callable[[], Any]) -> Any:
        """Return what the function returns.

        Raises
        ------
        CallError
            When it raises, takes too long, or an earlier call still runs.
        """
        if self.busy:
            raise CallError(f"{name} was not called; an earlier call has not returned yet")
        future = self._running = Future[Any]()
        # A daemon thread: one of an executor would keep the process from ending.
        thread = threading.Thread(target=_run, args=(function, future), daemon=True)
        thread.start()
        began = time.monotonic()
        while not future.done():
            waited, elapsed = waited_s(thread.native_id or 0), time.monotonic() - began
            if waited is None:
                left = self.time_limit_s * stretch() - elapsed
            else:
                left = self.time_limit_s - (elapsed - waited)
            if left <= 0:
                break
            wait([future], left)
        if not future.done():
            raise CallError(f"{name} took longer than {self.time_limit_s:g} s; make it faster")
        error = future.exception()
        if error is not None:
            raise CallError(f"{name} raised {described(error)}; it must not raise") from error
        return future.result()


def read_decisions(
    answer: Any, clients: Mapping[str, Any], space: RankSpace
) -> tuple[dict[str, RankDecision], dict[str, str]]:
    """Divide what ``allocate`` returned into what holds and what does not.

    Returns
    -------
    decisions
        The valid ones, by client.
    problems
        For each other client, known or not, what is wrong and what was expected.
    """
    if not isinstance(answer, Mapping):
        problem = f"allocate returned a {type(answer).__name__}; expected a dict by client"
        return {}, dict.fromkeys(clients, problem)
    decisions, problems = {}, {}
    for client in clients:
        decision = answer.get(client)
        if decision is None:
            problems[client] = "there is no decision; expected a RankDecision for every client"
        elif not isinstance(decision, RankDecision):
            problems[client] = f"the decision is {decision!r:.80}; expected a RankDecision"
        else:
            try:
                decisions[client] = decision.checked(space)
            except FedloraError as error:
                problems[client] = str(error)
    for client in answer:
        if client not in clients:
            problems[str(client)] = (
                "it does not take part; expected decisions for the given clients"
                if isinstance(client, str)
                else f"its key is {client!r:.80}, a {type(client).__name__}; expected the "
                "identifiers as they were given, which are str"
            )
    return decisions, problems


def _run(function: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # also SystemExit, which must not end the run
        future.set_exception(error)
