"""A client's measurements of the stream that wait for the server's answer."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future

import torch

from fedlora.errors import ClientLost
from fedlora.link import Frame, encode_frame
from fedlora.link.stream import PAD, PROBE


class Probes:
    """At most one waits at a time, as the server drops whoever sends more.

    Attributes
    ----------
    turn
        Held by who measures.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self._waiting: dict[int, Future[float]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def begin(self, client: str, up: int, down: int) -> tuple[bytes, Future[float]]:
        """Return a probe's frame, and the moment of its answer in seconds of the monotonic clock.

        Parameters
        ----------
        client
            Whose link is measured.
        up, down
            Bytes of each direction.

        Raises
        ------
        ClientLost
            When an earlier probe has not been answered.
        """
        with self._lock:
            if self._waiting:
                raise ClientLost(f"client {client} still waits for its last measurement")
            number, moment = next(self._numbers), Future[float]()
            self._waiting[number] = moment
        pad = {PAD: torch.zeros(up, dtype=torch.uint8)} if up else {}
        return encode_frame(Frame(PROBE, client, number, {"size": down}, pad)), moment

    def answered(self, number: int, moment: float) -> None:
        """Note when an answer came; one that nobody waits for is passed over."""
        with self._lock:
            waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.set_result(moment)

    def give_up(self, reason: str) -> None:
        """Wait for no answer any longer, since the stream broke."""
        with self._lock:
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for moment in waiting:
            moment.set_exception(ClientLost(f"the stream broke: {reason}"))
