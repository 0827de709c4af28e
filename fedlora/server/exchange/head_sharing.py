"""How a run's clients come to one head, and to one front: all are given the common one.

``head.share = "round"`` is FedAvg (McMahan et al. 2017) on the head: every client steps alone for a
round, and the server averages the weights by samples. ``step`` averages gradients at every step.
``front.share`` is the same for what makes vectors of samples, where that trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedlora.config import Scenario
from fedlora.errors import ProtocolError
from fedlora.link import Codec, Frame, Head, RoundEnd, create_codec, messages as m
from fedlora.server.compute import SharedHead, Weights, most_common
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.uploads import check_weights, read_named
from fedlora.tasks import head_trains


class HeadSharing:
    """The head and the front that all clients have in common, where the scenario shares them.

    Parameters
    ----------
    scenario
        How they are shared and trained.
    cohort
        The connected clients.
    """

    def __init__(self, scenario: Scenario, cohort: Cohort) -> None:
        self._scenario = scenario
        self._cohort = cohort
        shares = {
            m.HEAD_WEIGHT: scenario.head.share if head_trains(scenario) else "personal",
            m.FRONT_WEIGHT: scenario.front.share,
        }
        self._shares = {part: share for part, share in shares.items() if share != "personal"}
        self._common: dict[str, SharedHead] = {}
        self._codec = create_codec(**scenario.link.codec("end_weight"))

    @property
    def head(self) -> SharedHead | None:
        """The common head; None where heads are personal."""
        return self._common.get(m.HEAD_WEIGHT)

    @property
    def front(self) -> SharedHead | None:
        """The common front; None where fronts are personal."""
        return self._common.get(m.FRONT_WEIGHT)

    @property
    def step_head(self) -> SharedHead | None:
        """The common head where it is averaged every step."""
        return self.head if self._shares.get(m.HEAD_WEIGHT) == "step" else None

    @property
    def step_front(self) -> SharedHead | None:
        """The common front where it is averaged every step."""
        return self.front if self._shares.get(m.FRONT_WEIGHT) == "step" else None

    def begin(self, replies: Mapping[str, Frame]) -> None:
        """Begin with what most clients hand in; whose is of another shape has to go.

        Where none is shared, what a client hands in all the same is not looked at: it would be the
        only one, and the head of all.
        """
        self._common = {}
        for part in self._shares:
            first = most_common({c: self._weights(part, c, r) for c, r in replies.items()})
            if first:
                self._common[part] = self._new(part, first)
                for client, reply in replies.items():
                    self._weights(part, client, reply)

    def end_round(self, asked: Iterable[str], rows: Mapping[str, int]) -> None:
        """End the round at the clients, and give everybody what is common.

        Parameters
        ----------
        asked
            Clients that were asked for a step of the round.
        rows
            Rows that each of them has trained on.
        """
        averaged = [part for part in self._common if self._shares[part] == "round"]
        replies = self._cohort.ask(asked, RoundEnd(bool(averaged)))
        for part in averaged:
            weights = {c: self._weights(part, c, r, self._codec) for c, r in replies.items()}
            weights = {c: w for c, w in weights.items() if w and c in rows}
            if weights:
                self._common[part].average(list(weights.values()), [rows[c] for c in weights])
        self.give(self._cohort.clients)

    def give(self, clients: Sequence[str], waiting: Sequence[str] = ()) -> bool:
        """Give clients what is common, if anything is, while others may wait.

        Returns
        -------
        bool
            Whether all of them have it.
        """
        if not self._common:
            return True
        head, front = (own.tensors() if own else {} for own in (self.head, self.front))
        return len(self._cohort.ask(clients, Head(head, front), waiting)) == len(clients)

    def state_dict(self, part: str = m.HEAD_WEIGHT) -> dict[str, Any] | None:
        """Return the head, or the front, and its optimiser, for a checkpoint."""
        common = self._common.get(part)
        return None if common is None else common.state_dict()

    def load_state_dict(
        self, head: Mapping[str, Any] | None, front: Mapping[str, Any] | None = None
    ) -> None:
        """Take back what ``state_dict`` gave."""
        self._common = {}
        for part, state in ((m.HEAD_WEIGHT, head), (m.FRONT_WEIGHT, front)):
            if state is not None:
                self._common[part] = self._new(part, state["weights"])
                self._common[part].load_state_dict(state)

    def _new(self, part: str, weights: Weights) -> SharedHead:
        config = self._scenario
        return SharedHead(weights, config.train, config.robust, part, config.link)

    def _weights(self, part: str, client: str, reply: Frame, codec: Codec | None = None) -> Weights:
        common = self._common.get(part)
        try:
            found = read_named(reply, part, None if common is None else common.shapes, codec)
            check_weights(found)
            return found
        except ProtocolError as error:
            self._cohort.drop(client, str(error))
            return {}
