"""The detached Ray actors that host a simulation's clients: dealt, watched, ended."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.launch.killed import ended_by_ray, memory
from fedlora.report import RunFolder
from fedlora.server.flower.nodes import Node
from fedlora.server.flower.questions import in_simulation
from fedlora.server.unfinished import going_on

log = logging.getLogger("fedlora.server")

NAMESPACE = "fedlora"
_LOOK_S = 1.0
_NAMED = 8  # clients in a sentence


class EdgeHosts:
    """The edge hosts of a run, as a context manager: what leaves it ends them.

    Where one has ended before, an error that follows from it is replaced by the sentence that
    says so.

    Parameters
    ----------
    scenario
        Says how many there are.
    nodes
        Whose clients they host, where they are simulated.
    run_id
        Flower's number of the run.
    folder
        The run's folder.

    Attributes
    ----------
    of
        Name of each simulated client's host.
    lost
        What is said of one that ended; empty while all are there.
    """

    def __init__(
        self, scenario: Scenario, nodes: Sequence[Node], run_id: int, folder: RunFolder
    ) -> None:
        simulated = [node.client for node in nodes if node.simulated]
        hosts = scenario.compute.edge_hosts or os.cpu_count() or 1
        self.of: Mapping[int, str] = {
            client: f"edge-{run_id}-{place % hosts}" for place, client in enumerate(simulated)
        }
        self.lost = ""
        self._folder = folder
        self._before = memory()

    def __enter__(self) -> EdgeHosts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._names():
            _end(name)
        if self.lost and isinstance(error, FedloraError):
            raise FedloraError(f"{self.lost}; {going_on(self._folder)}") from None

    @contextmanager
    def watched(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Look in a thread whether all hosts are there while the block runs.

        Parameters
        ----------
        tell
            Called once, in that thread, with what is said of the first that has ended.
        """
        over = threading.Event()
        thread = threading.Thread(
            target=self._watch, args=(over, tell), name="fedlora-edge-hosts", daemon=True
        )
        if self.of:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if self.of:
                thread.join(10 * _LOOK_S)

    def _names(self) -> list[str]:
        return sorted(set(self.of.values()))

    def _watch(self, over: threading.Event, tell: Callable[[str], None]) -> None:
        import ray

        actors: dict[str, Any] = {}
        asked: dict[str, Any] = {}
        told: set[str] = set()
        while not over.wait(_LOOK_S):
            if not in_simulation():  # Ray's functions would start a Ray of this process's own
                continue
            for name in self._names():
                try:
                    actors[name] = actors.get(name) or ray.get_actor(name, namespace=NAMESPACE)
                except ValueError:  # not started yet; who starts it tells of its failure
                    continue
                asked[name] = asked.get(name) or actors[name].overdue.remote()
            ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=0)
            for name in [name for name, answer in asked.items() if answer in ready]:
                try:
                    slow = set(ray.get(asked.pop(name))) - told
                except ray.exceptions.RayError as error:
                    self.lost = ended_by_ray(self._who(name, str(error)), str(error), self._before)
                    if self.lost:
                        tell(self.lost)
                        return
                    continue
                told |= slow
                for text in sorted(slow):
                    log.warning("%s", text)

    def _who(self, name: str, said: str) -> str:
        """Name a host by its clients and the process that Ray knows it as."""
        clients = [str(client) for client, host in self.of.items() if host == name]
        shown = ", ".join(clients[:_NAMED]) + ", …" * (len(clients) > _NAMED)
        pid = re.search(r"pid[:=] ?(\d+)", said)
        process = f" (process {pid[1]})" if pid else ""
        return f"the edge host{process} of client{'s' * (len(clients) > 1)} {shown}"


def _end(name: str) -> None:
    """End a detached actor, which would outlive the run."""
    import ray

    if not in_simulation():
        return
    try:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    except ValueError:
        log.debug("edge host %s has not started, or has ended", name)
