"""The Flower nodes of a run: which there are, and which client each of them is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedlora.config import FederationConfig, Scenario
from fedlora.errors import FedloraError
from fedlora.report import RunFolder
from fedlora.server.flower.questions import RECORD, Questions, in_simulation

__all__ = ["RECORD", "Node", "Seats", "find_nodes"]

_POLL_S = 0.2
_PATIENCE_S = 8.0  # before a run that waits for nodes says so
_ASK_AGAIN_S = 10.0
_MOST_SIMULATED = 100_000


@dataclass(frozen=True)
class Node:
    """A Flower node that takes part.

    Attributes
    ----------
    id
        Flower's number of the node.
    client
        Its client number: the partition-id of its node configuration.
    simulated
        Whether it is a virtual node of Flower's simulation.
    """

    id: int
    client: int
    simulated: bool


class Seats:
    """Which node is which client: as the scenario says, or first come, first served.

    Parameters
    ----------
    config
        Its ``nodes`` bind client numbers to nodes.
    questions
        Warns of nodes that are refused.
    """

    def __init__(self, config: FederationConfig, questions: Questions) -> None:
        self._bound = {int(node): client for client, node in enumerate(config.nodes)}
        self._questions = questions
        self.nodes: dict[int, Node] = {}  # by client
        self.refused: set[int] = set()

    @property
    def bound(self) -> bool:
        """Whether the scenario names the nodes."""
        return bool(self._bound)

    def take(self, node: int, client: int, online: Sequence[int], *, simulated: bool) -> bool:
        """Give a node the seat of a client; False when it is another's.

        Parameters
        ----------
        node, client
            Who says to be whom.
        online
            Nodes that can be reached: one that cannot loses its seat to a new one.
        simulated
            Whether this is a simulation, where Flower numbers the nodes.
        """
        if self._bound and not simulated:
            return self._take_own(node, client)
        held = self.nodes.get(client)
        if held is not None and held.id != node and held.id in online:
            self.refused.add(node)
            self._questions.tell(
                f"node {node} is refused: it says partition-id {client}, which is that of node "
                f"{held.id}; give each SuperNode its own, or bind them by federation.nodes"
            )
            return False
        self._seat(Node(node, client, simulated))
        return True

    def _take_own(self, node: int, client: int) -> bool:
        own = self._bound.get(node)
        if own != client:
            self.refused.add(node)
            whose = "names it not" if own is None else f"binds it to client {own}"
            self._questions.tell(
                f"node {node} is refused: it says partition-id {client}, and federation.nodes "
                f"{whose}; mend either"
            )
            return False
        self._seat(Node(node, client, simulated=False))
        return True

    def _seat(self, node: Node) -> None:
        self.refused.discard(node.id)
        self.nodes = {c: n for c, n in self.nodes.items() if n.id != node.id} | {node.client: node}


def find_nodes(grid: Grid, scenario: Scenario, folder: RunFolder) -> list[Node]:
    """Ask nodes who they are until all of the federation are there.

    In a simulation the nodes tell how many there are, and carry the scenario's clients between
    them, however many these are; in a deployment the scenario says how many there are to be.
    Whether this is one is known here, whatever nodes say. A node that is refused fills no seat, and
    when all who are missing may be refused ones the run begins without them.

    Parameters
    ----------
    grid
        Flower's way to the nodes.
    scenario
        Says how many are wanted, how many suffice, and how long to wait for them.
    folder
        Where the wait is told.

    Returns
    -------
    list of Node
        Sorted by client number.

    Raises
    ------
    FedloraError
        When too few answer in time.
    """
    config = scenario.federation
    began = time.monotonic()
    deadline = began + config.connect_timeout_s
    questions = Questions(grid)
    seats = Seats(config, questions)
    again: dict[int, float] = {}  # when a node that did not answer well is asked once more
    pauses: dict[int, float] = {}  # longer each time for one that is silent: it may be slow
    wanted, latest = config.clients, began
    tell_at, told = began + _PATIENCE_S, -1
    while (now := time.monotonic()) < deadline and len(seats.nodes) < wanted:
        if now > tell_at and len(seats.nodes) != told:
            told = len(seats.nodes)
            text = f"{told} of {wanted} nodes are there; waiting {deadline - now:.0f} s for others"
            folder.append_event("message", text=text, level="info")
        online = sorted(set(grid.get_node_ids()))
        seated = {node.id for node in seats.nodes.values()}
        fresh = [n for n in online if n not in seated and again.get(n, 0.0) <= now]
        for node in fresh:
            pauses[node] = 2 * pauses[node] if node in questions.silent() else _ASK_AGAIN_S
            again[node] = now + pauses[node]
        questions.ask(fresh)
        for node, client, clients in questions.answers():
            simulated = in_simulation()
            if seats.take(node, client, online, simulated=simulated):
                latest = now
            if simulated:
                wanted = min(max(1, clients), _MOST_SIMULATED)
        if _is_settled(seats, config, wanted, now - latest):
            break
        time.sleep(_POLL_S if len(seats.nodes) < wanted else 0)
    nodes = seats.nodes
    if any(node.simulated for node in nodes.values()):
        nodes = _dealt([nodes[number] for number in sorted(nodes)], config.clients, folder)
    return _enough(nodes, config)


def _dealt(carriers: Sequence[Node], clients: int, folder: RunFolder) -> dict[int, Node]:
    """Deal a simulation's clients to its nodes: these hand sessions on, and compute nothing."""
    if len(carriers) != clients:
        text = (
            f"Flower simulates {len(carriers)} nodes; they carry the scenario's {clients} clients"
        )
        folder.append_event("message", text=text, level="info")
    return {
        client: Node(carriers[client % len(carriers)].id, client, simulated=True)
        for client in range(clients)
    }


def _is_settled(seats: Seats, config: FederationConfig, wanted: int, quiet_s: float) -> bool:
    """Tell whether refused nodes may be all who are missing, and nobody has come for a while."""
    there = len(seats.nodes)
    missing = wanted - there
    enough = there >= max(1, config.min_clients)
    return enough and 0 < missing <= len(seats.refused) and quiet_s > _ASK_AGAIN_S


def _enough(nodes: Mapping[int, Node], config: FederationConfig) -> list[Node]:
    if len(nodes) < config.min_clients or not nodes:
        simulated = any(node.simulated for node in nodes.values())
        mend = "simulate more, or lower it" if simulated else "start more SuperNodes"
        raise FedloraError(
            f"{len(nodes)} nodes answered within {config.connect_timeout_s:g} s, "
            f"federation.min_clients is {config.min_clients}; {mend}"
        )
    return [nodes[client] for client in sorted(nodes)]
