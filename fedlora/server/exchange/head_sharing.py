"""How a run's clients come to one head: theirs are taken, and the common one is given to all.

``head.share = "round"`` is FedAvg (McMahan et al. 2017) on the head: every client steps alone for a
round, and the server averages the weights by samples. ``step`` averages gradients at every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedlora.config import Scenario
from fedlora.errors import ProtocolError
from fedlora.link import Frame, messages as m
from fedlora.server.compute.shared_head import SharedHead, Weights, most_common
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.member import Request
from fedlora.server.exchange.uploads import check_weights, read_named
from fedlora.tasks import head_trains


class HeadSharing:
    """The head that all clients have in common, where the scenario shares one.

    Parameters
    ----------
    scenario
        How it is shared and trained.
    cohort
        The connected clients.

    Attributes
    ----------
    head
        The common head; None where heads are personal.
    """

    def __init__(self, scenario: Scenario, cohort: Cohort) -> None:
        self._scenario = scenario
        self._cohort = cohort
        trains = head_trains(scenario)
        self._shares = trains and scenario.head.share != "personal"
        self.head: SharedHead | None = None

    @property
    def step_head(self) -> SharedHead | None:
        """The common head where it is averaged every step."""
        return self.head if self._scenario.head.share == "step" else None

    def begin(self, replies: Mapping[str, Frame]) -> None:
        """Begin with the head that most clients hand in; whose is of another shape has to go.

        Where none is shared, what a client hands in all the same is not looked at: it would be the
        only one, and the head of all.
        """
        self.head = None
        if not self._shares:
            return
        first = most_common({client: self._weights(client, r) for client, r in replies.items()})
        if first:
            self.head = self._new(first)
            for client, reply in replies.items():
                self._weights(client, reply)

    def end_round(self, asked: Iterable[str], rows: Mapping[str, int]) -> None:
        """End the round at the clients, and give everybody the common head.

        Parameters
        ----------
        asked
            Clients that were asked for a step of the round.
        rows
            Rows that each of them has trained on.
        """
        share = self._scenario.head.share
        request = Request(m.ROUND_END, {"weights": self.head is not None and share == "round"})
        replies = self._cohort.ask(asked, request)
        if self.head is None:
            return
        if share == "round":
            weights = {c: self._weights(c, r) for c, r in replies.items()}
            weights = {c: w for c, w in weights.items() if w and c in rows}
            if weights:
                self.head.average(list(weights.values()), [rows[c] for c in weights])
        self.give(self._cohort.clients)

    def give(self, clients: Sequence[str], waiting: Sequence[str] = ()) -> bool:
        """Give clients the common head, if there is one, while others may wait.

        Returns
        -------
        bool
            Whether all of them have it.
        """
        if self.head is None:
            return True
        request = Request(m.HEAD, {}, self.head.tensors())
        return len(self._cohort.ask(clients, request, waiting)) == len(clients)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the head and its optimiser, for a checkpoint."""
        return None if self.head is None else self.head.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take back what ``state_dict`` gave."""
        self.head = None
        if state is not None:
            self.head = self._new(state["weights"])
            self.head.load_state_dict(state)

    def _new(self, weights: Weights) -> SharedHead:
        return SharedHead(weights, self._scenario.train, self._scenario.robust)

    def _weights(self, client: str, reply: Frame) -> Weights:
        try:
            shapes = self.head.shapes if self.head is not None else None
            found = read_named(reply, m.HEAD_WEIGHT, shapes)
            check_weights(found)
            return found
        except ProtocolError as error:
            self._cohort.drop(client, str(error))
            return {}
