"""Asking Flower nodes who they are, without waiting for one that does not say."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedlora.errors import FedloraError, printable
from fedlora.launch.killed import ended_by_ray
from fedlora.link import ERROR, told

log = logging.getLogger("fedlora.server")

HELLO = "query.hello"
RECORD = "fedlora"
MOST_CLIENTS = 10**9  # client numbers are below


def in_simulation() -> bool:
    """Tell whether this process is that of Flower's simulation, whose nodes are Ray's workers.

    To be asked when a node has answered: Flower starts Ray beside the ServerApp. In a deployment
    nothing starts it, whatever nodes say.
    """
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


class Questions:
    """Questions to nodes that are under way.

    Parameters
    ----------
    grid
        Flower's way to the nodes.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._open: dict[str, int] = {}
        self._told: set[str] = set()

    def ask(self, nodes: Sequence[int]) -> None:
        """Ask nodes who they are; a slow one may still answer an earlier question."""
        if not nodes:
            return
        messages = [Message(RecordDict(), dst_node_id=n, message_type=HELLO) for n in nodes]
        self._open |= dict(zip(self._grid.push_messages(messages), nodes, strict=True))

    def answers(self) -> list[tuple[int, int, int]]:
        """Return who has answered since: node, its client number, and the clients it knows of.

        Raises
        ------
        FedloraError
            When in a simulation the process that was to answer is gone.
        """
        found = []
        for reply in self._grid.pull_messages(list(self._open)) if self._open else ():
            node = self._answered(reply.metadata.reply_to_message_id)
            if node is None:
                continue
            if reply.has_error():
                gone = ended_by_ray("a worker of the simulation", str(reply.error))
                if gone and in_simulation():
                    raise FedloraError(gone)
                self.tell(f"node {node} cannot take part: {printable(reply.error)}")
                continue
            try:
                record = reply.content[RECORD]
                if record.get(ERROR):
                    self.tell(f"node {node} cannot take part: {told(dict(record), ERROR)}")
                    continue
                client, clients = int(record["client"]), int(record["clients"])
                if not 0 <= client < MOST_CLIENTS:
                    raise ValueError(f"partition-id {client}")
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                self.tell(
                    f"node {node} does not say who it is ({printable(repr(error))}); it needs the "
                    "same fedlora release and a partition-id"
                )
                continue
            found.append((node, client, clients))
        return found

    def silent(self) -> set[int]:
        """Return the nodes that owe an answer."""
        return set(self._open.values())

    def _answered(self, name: str) -> int | None:
        """Return whose question has been answered; what it was asked before counts no more."""
        node = self._open.get(name)
        for known in list(self._open) if node is not None else ():
            if self._open[known] == node:
                del self._open[known]
            if known == name:
                break
        return node

    def answers_within(self, limit_s: float) -> list[tuple[int, int, int]]:
        """Return the answers that come within so many seconds."""
        deadline, found = time.monotonic() + limit_s, self.answers()
        while self._open and time.monotonic() < deadline:
            time.sleep(0.1)
            found += self.answers()
        return found

    def tell(self, text: str) -> None:
        """Warn of a node, once."""
        if text not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(text)
            log.warning("%s", text)


_MOST_TOLD = 1000
