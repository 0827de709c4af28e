"""Nodes that come when a run is under way: asked between rounds who they are, and seated if free.

A node is asked at the end of one round and heard at the end of a later one, so that a silent one
keeps nobody waiting: what is waited all the same is a small share of the round, and the waiting for
a lost device that comes back under another number is bounded over the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from flwr.serverapp import Grid

from fedlora.config import FederationConfig
from fedlora.server.flower.nodes import Node
from fedlora.server.flower.questions import Questions

_LOOK_S = 5.0  # between two looks for new nodes, where nobody is lost
_SHARE = 0.05  # of the time since the last look
_LONGEST_S = 15.0  # of one waiting
_FOR_LOST_S = 120.0  # of all waiting for lost devices, over the run
_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 600.0  # before a node is asked again, twice as long each time


class LateNodes:
    """Looks for nodes that are no client's.

    Parameters
    ----------
    grid
        Flower's way to the nodes.
    config
        Says how many clients there are to be, and which nodes they are bound to.
    clock
        Source of time in seconds.
    """

    def __init__(
        self, grid: Grid, config: FederationConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._bound = {int(node): client for client, node in enumerate(config.nodes)}
        self._questions = Questions(grid)
        self._clock = clock
        self._looked = clock()
        self._for_lost_s = _FOR_LOST_S
        self._again: dict[int, float] = {}
        self._pauses: dict[int, float] = {}

    @property
    def due(self) -> bool:
        """Whether it is time to look for new nodes."""
        return self._clock() >= self._looked + _LOOK_S

    def seat(
        self, online: Collection[int], nodes: Mapping[str, Node], lost: Collection[str]
    ) -> dict[str, Node]:
        """Return clients for which a node has come: one that was not there yet, or a lost one.

        Parameters
        ----------
        online
            Nodes that can be reached.
        nodes
            Which node each client of the run is, or was last.
        lost
            Clients that may come back, also under another number.
        """
        known = {node.id for node in nodes.values()}
        strangers = sorted(set(online) - known)
        away = set() if self._bound else {c for c in lost if nodes[c].id not in online}
        full = len(nodes) >= self._config.clients
        if full and not away:
            for node in strangers:
                self._questions.tell(
                    f"node {node} is not taken in: the run has had all its clients, "
                    f"federation.clients is {self._config.clients}; set more for another run"
                )
            self._looked = self._clock()
            return {}
        asked = self._ask([node for node in strangers if self._is_meant(node)])
        found: dict[str, Node] = {}
        for node, client, _ in self._answers(away, asked=asked):
            if node in strangers and self._is_free(node, client, {**nodes, **found}, away):
                found[str(client)] = Node(node, client, simulated=False)
                away.discard(str(client))
        return found

    def _is_meant(self, node: int) -> bool:
        """Tell whether a node may be a client of the run, before it is asked."""
        meant = not self._bound or node in self._bound
        if not meant:
            self._questions.tell(f"node {node} is not taken in: federation.nodes names it not")
        return meant

    def _ask(self, strangers: Collection[int]) -> bool:
        """Ask who has not been asked for long enough; tell whether there is anybody."""
        now = self._clock()
        due = [node for node in strangers if self._again.get(node, 0.0) <= now]
        for node in due:
            pause = min(2 * self._pauses.get(node, _PAUSE_S / 2), _LONGEST_PAUSE_S)
            self._pauses[node], self._again[node] = pause, now + pause
        self._questions.ask(due)
        return bool(due)

    def _answers(self, away: Collection[str], *, asked: bool) -> list[tuple[int, int, int]]:
        """Return who has answered, after a short time for who was asked just now."""
        began = self._clock()
        limit_s = _SHARE * (began - self._looked)
        if away:
            limit_s = max(limit_s, self._for_lost_s)
        found = self._questions.answers_within(min(_LONGEST_S, limit_s) if asked else 0.0)
        self._looked = self._clock()
        if away:
            self._for_lost_s = max(0.0, self._for_lost_s - (self._looked - began))
        return found

    def _is_free(
        self, node: int, client: int, nodes: Mapping[str, Node], away: Collection[str]
    ) -> bool:
        """Tell whether a node may be the client that it says to be; say why not."""
        most, name = self._config.clients, str(client)
        why = ""
        if self._bound and self._bound[node] != client:
            why = f"federation.nodes binds it to client {self._bound[node]}; mend either"
        elif name in nodes and name not in away:
            why = (
                f"which is that of node {nodes[name].id}; give each SuperNode its own, or bind "
                "them by federation.nodes"
            )
        elif name not in nodes and (len(nodes) >= most or client >= most):
            why = f"and federation.clients is {most}; give it a number of those that are free"
        if why:
            self._questions.tell(f"node {node} is refused: it says partition-id {client}, {why}")
        return not why
