"""A client that keeps its own state on its own disk, so that a run can be taken up again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from clients.edge_client import EdgeClient
from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import messages as m
from fedlora.link.frame import Frame
from fedlora.state import RoundStates

log = logging.getLogger("fedlora.edge")


class Keeper:
    """Answers ``keep`` and ``restore`` from a folder, and leaves the rest to the client.

    Parameters
    ----------
    client
        The client.
    folder
        Where this client's states of this run are; the last two are kept.
    """

    def __init__(self, client: EdgeClient, folder: Path) -> None:
        self._client = client
        self._states = RoundStates(folder)
        self._handlers: dict[str, Callable[[int], int]] = {
            m.KEEP: self._keep,
            m.RESTORE: self._restore,
        }

    def handle(self, frame: Frame) -> Frame:
        """Answer one request; see ``EdgeClient.handle``."""
        handler = self._handlers.get(frame.kind)
        if handler is None:
            return self._client.handle(frame)
        round_ = frame.fields.get("round")
        if not isinstance(round_, int) or isinstance(round_, bool) or not 0 <= round_ < 10**6:
            raise ProtocolError(f"{frame.kind} needs a round from 0 to 999999, not {round_!r}")
        return Frame(m.READY, self._client.name, frame.seq, {"round": handler(round_)})

    def _keep(self, round_: int) -> int:
        """Store the state of a round; return its number, or -1 when it cannot be stored."""
        try:
            self._states.write(round_, self._client.state_dict())
        except FedloraError as error:
            log.warning("client %s stores no state: %s", self._client.name, error)
            return -1
        return round_

    def _restore(self, round_: int) -> int:
        """Go back to the last state up to a round; return its number, 0 when all starts anew."""
        self._states.forget_after(round_)
        for found, state in self._states.readable():
            try:
                self._client.load_state_dict(state)
            except FedloraError as error:
                log.warning("client %s cannot use round %d: %s", self._client.name, found, error)
            else:
                return found
        self._client.restart()
        return 0
