"""The Flower nodes of a run: which there are, and which client each of them is."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.printable import printable
from fedlora.report.run_folder import RunFolder

log = logging.getLogger("fedlora.server")

HELLO = "query.hello"
RECORD = "fedlora"
_POLL_S = 0.2
_PATIENCE_S = 8.0  # before a run that waits for nodes says so
_ANSWER_S = 60.0
_ASK_AGAIN_S = 10.0


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


def find_nodes(grid: Grid, scenario: Scenario, folder: RunFolder) -> list[Node]:
    """Ask nodes who they are until all of the federation are there.

    In a simulation the first node tells how many there are; in a deployment the scenario does.

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
        When too few answer in time, or two call themselves the same.
    """
    deadline = time.monotonic() + scenario.federation.connect_timeout_s
    known: dict[int, Node] = {}
    again: dict[int, float] = {}  # when a node that did not answer well is asked once more
    wanted = scenario.federation.clients
    tell_at, told = time.monotonic() + _PATIENCE_S, -1
    while time.monotonic() < deadline and len(known) < wanted:
        if time.monotonic() > tell_at and len(known) != told:
            told, left_s = len(known), deadline - time.monotonic()
            text = f"{told} of {wanted} nodes are there; waiting {left_s:.0f} s for the others"
            folder.append_event("message", text=text, level="info")
        now = time.monotonic()
        there = sorted(set(grid.get_node_ids()) - set(known))
        fresh = [node for node in there if again.get(node, 0.0) <= now]
        if not known:
            fresh = fresh[:1]
        again |= dict.fromkeys(fresh, now + _ASK_AGAIN_S)
        for node, total in ask_who(grid, fresh):
            known[node.id] = node
            if node.simulated:
                wanted = total
        time.sleep(_POLL_S if len(known) < wanted else 0)
    nodes = sorted(known.values(), key=lambda node: node.client)
    if len(nodes) < scenario.federation.min_clients or not nodes:
        raise FedloraError(
            f"{len(nodes)} nodes answered within {scenario.federation.connect_timeout_s:g} s, "
            f"federation.min_clients is {scenario.federation.min_clients}; start more SuperNodes"
        )
    clients = [node.client for node in nodes]
    if len(set(clients)) < len(clients):
        raise FedloraError(
            f"nodes have the partition-ids {clients}; give each SuperNode its own in --node-config"
        )
    return nodes


def ask_who(grid: Grid, ids: Sequence[int]) -> list[tuple[Node, int]]:
    """Ask nodes who they are; return those that answer, each with the clients it knows of."""
    messages = [Message(RecordDict(), dst_node_id=i, message_type=HELLO) for i in ids]
    found = []
    for reply in grid.send_and_receive(messages, timeout=_ANSWER_S) if messages else ():
        if reply.has_error():
            log.warning("node %s cannot take part: %s", reply.metadata.src_node_id, reply.error)
            continue
        try:
            record = reply.content[RECORD]
            if "error" in record:
                log.warning(
                    "node %s cannot take part: %s",
                    reply.metadata.src_node_id,
                    printable(record["error"]),
                )
                continue
            client, clients = int(record["client"]), int(record["clients"])
            node = Node(reply.metadata.src_node_id, client, bool(record["simulated"]))
        except (KeyError, TypeError, ValueError) as error:
            log.warning(
                "node %s does not say who it is (%r); it needs the same fedlora release",
                reply.metadata.src_node_id,
                error,
            )
            continue
        found.append((node, clients))
    return found
