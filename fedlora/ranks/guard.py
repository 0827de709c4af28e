"""A run does not end because a strategy errs: faults are named and the last valid ranks stay."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedlora.errors import FedloraError, described
from fedlora.ranks.calls import Caller, CallError, read_decisions
from fedlora.ranks.reports import ClientOutcome, ClientReport
from fedlora.ranks.space import RankDecision, RankSpace
from fedlora.ranks.strategy import RankStrategy
from fedlora.storage.tree import pack_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StrategyFault:
    """What a strategy did wrong.

    Attributes
    ----------
    round
        Round in which it happened.
    client
        The client concerned; ``None`` when it concerns all.
    problem
        What is wrong, what was expected, and how the run goes on.
    """

    round: int
    client: str | None
    problem: str

    def __str__(self) -> str:
        whom = "" if self.client is None else f"client {self.client}: "
        return f"round {self.round}: {whom}{self.problem}"


class GuardedStrategy(RankStrategy):
    """Wraps a strategy so that whatever it does, every client gets valid ranks.

    A client whose decision is not valid keeps its last valid one, or gets r_min at every projection
    if it has none yet. Only what ``prepare`` and ``load_state_dict`` raise, before the first round,
    stops the run.

    Parameters
    ----------
    strategy
        The strategy to call.
    time_limit_s
        Longest that ``allocate`` or ``observe`` may take, in seconds.

    Attributes
    ----------
    complaints
        All faults so far, in order; the first of each round is logged, too.
    """

    def __init__(self, strategy: RankStrategy, *, time_limit_s: float = 10.0) -> None:
        self.strategy = strategy
        self.complaints: list[StrategyFault] = []
        self._caller = Caller(time_limit_s)
        self._last: dict[str, RankDecision] = {}
        self._round = 0

    def prepare(self, space: RankSpace) -> None:
        """Let the strategy refuse the space."""
        with self._refusals("prepare"):
            self.strategy.prepare(space)

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Return valid ranks for every client, in the order of the identifiers."""
        self._round = round
        reports = {client: clients[client] for client in sorted(clients)}
        lowest = RankDecision(space.uniform(space.r_min))
        try:
            # The copy is the strategy's to change; what it returns may be code of its own, too.
            decisions, problems = self._caller.call(
                "allocate",
                lambda: read_decisions(
                    self.strategy.allocate(round, dict(reports), space), reports, space
                ),
            )
        except CallError as failure:
            self._complain(
                {None: f"{failure}; all clients keep their last valid ranks, or get the smallest"}
            )
        else:
            self._last |= decisions
            self._complain(
                {
                    client: f"{problem}; " + self._consequence(client, reports)
                    for client, problem in problems.items()
                }
            )
        return {client: self._last.get(client, lowest) for client in reports}

    def observe(self, round: int, outcomes: Mapping[str, ClientOutcome]) -> None:
        """Pass the outcomes on."""
        self._round = round
        # The strategy may change its copy; the caller still reports the original.
        mine = copy.deepcopy({client: outcomes[client] for client in sorted(outcomes)})
        self._try("observe", lambda: self.strategy.observe(round, mine), "it did not learn from it")

    def state_dict(self) -> dict[str, Any]:
        """Return the strategy's state and each client's last valid ranks."""
        last = {client: [list(d.train), list(d.deliver)] for client, d in self._last.items()}
        state = self._try("state_dict", self._storable_state, "the checkpoint is without its state")
        return {"strategy": state, "last": last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that ``state_dict`` returned."""
        self._last = {client: RankDecision(*pair) for client, pair in state["last"].items()}
        if state["strategy"] is None:
            self._complain({None: "the checkpoint is without the strategy's state; it starts anew"})
        else:
            with self._refusals("load_state_dict"):
                self.strategy.load_state_dict(state["strategy"])

    @contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        """Turn whatever a strategy raises before a run begins into a sentence that stops it."""
        try:
            yield
        except FedloraError:
            raise
        except Exception as error:
            raise FedloraError(
                f"{name} of strategy {type(self.strategy).__name__} raised {described(error)}; "
                "mend it or choose another strategy"
            ) from error

    def _storable_state(self) -> dict[str, Any]:
        state = self.strategy.state_dict()
        pack_state(state)
        return state

    def _try(self, name: str, function: Callable[[], Any], consequence: str) -> Any:
        try:
            return self._caller.call(name, function)
        except CallError as failure:
            self._complain({None: f"{failure}; {consequence}"})
            return None

    def _consequence(self, client: str, reports: Mapping[str, ClientReport]) -> str:
        if client not in reports:
            return "it is left out"
        return "its last valid ranks stay" if client in self._last else "it gets the smallest ranks"

    def _complain(self, problems: Mapping[Any, str]) -> None:
        new = [StrategyFault(self._round, client, problem) for client, problem in problems.items()]
        self.complaints += new
        if new:
            # One line a call, or a fault that repeats for a hundred clients would flood the log.
            more = f" (and {len(new) - 1} more clients)" if len(new) > 1 else ""
            logger.warning("strategy %s: %s%s", type(self.strategy).__name__, new[0], more)
