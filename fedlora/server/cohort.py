"""The connected clients: ask them all, wait for them all, go on without those who fail."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fedlora.errors import ClientLate, ClientLost, FedloraError, ProtocolError
from fedlora.link import messages as m
from fedlora.link.frame import Frame
from fedlora.link.link import Link
from fedlora.link.reasons import told

log = logging.getLogger("fedlora.server")

Book = Callable[[str, str, Mapping[str, torch.Tensor], int], None]


@dataclass(frozen=True)
class Request:
    """What one client is asked: a message kind with its fields and tensors."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Member:
    """One connected client.

    Attributes
    ----------
    link
        The connection.
    rows, held_out_rows
        Training and evaluation rows, as the client told.
    seq
        Number of the last request.
    asked
        Its kind.
    """

    link: Link
    rows: int
    held_out_rows: int
    seq: int = 0
    asked: str = ""


class Cohort:
    """All clients of a run by identifier, in a fixed order.

    Who misses the deadline of an exchange is late: it stays, the exchange goes on without it, and
    its answer is taken when it comes. After ``max_misses`` of them it is lost. In a simulation only
    the modelled clock may decide who is late, so a deadline that passes there ends the run.

    Parameters
    ----------
    timeout_s
        How long the answers to one exchange may take.
    book
        Called for every frame that travels with client, direction (``up`` or ``down``), tensors and
        size in bytes.
    max_misses
        Deadlines that a client may miss until ``begin_round`` is called.

    Attributes
    ----------
    deployed
        Whether clients are devices, so that the wall clock decides who is late.
    late
        Clients that owe an answer, with the kind of the request.
    misses
        Deadlines that each client has missed since the round began.
    lost
        Why clients are gone.
    may_return
        Those of them who were lost, rather than that they left or broke the protocol.
    times_lost
        How often each client was.
    """

    def __init__(self, timeout_s: float, book: Book, max_misses: int = 3) -> None:
        self.timeout_s = timeout_s
        self.max_misses = max_misses
        self.deployed = False
        self.late: dict[str, str] = {}
        self.misses: Counter[str] = Counter()
        self._book = book
        self._members: dict[str, Member] = {}
        self.lost: dict[str, str] = {}
        self.may_return: set[str] = set()
        self.times_lost: Counter[str] = Counter()

    @property
    def clients(self) -> list[str]:
        """Connected clients, sorted: the order of rows in every batch."""
        return list(self._members)

    def __getitem__(self, client: str) -> Member:
        """Return one client."""
        return self._members[client]

    def __contains__(self, client: str) -> bool:
        """Tell whether a client is connected."""
        return client in self._members

    def add(self, member: Member) -> None:
        """Take in a client; a second one of the same name is refused.

        Raises
        ------
        FedloraError
            When the name is taken.
        """
        name = member.link.client
        if name in self._members:
            raise FedloraError(f"client {name!r} is already connected; give each client its own id")
        self.lost.pop(name, None)
        self.may_return.discard(name)
        self._members = dict(
            sorted({**self._members, name: member}.items(), key=lambda item: natural(item[0]))
        )

    def drop(self, client: str, reason: str) -> None:
        """Leave a client out from now on, and say why."""
        member = self._members.pop(client, None)
        if member is None:
            return
        self.lost[client] = reason
        self.late.pop(client, None)
        log.warning("client %s leaves the run: %s", client, reason)
        member.link.close(reason)

    def _lose(self, client: str, error: FedloraError) -> None:
        self.drop(client, str(error))
        if isinstance(error, ClientLost):
            self.may_return.add(client)
            self.times_lost[client] += 1

    def begin_round(self) -> None:
        """Forget the misses of the round before."""
        self.misses.clear()

    def reasons(self) -> str:
        """Say why the first few of the lost clients left; empty when none did."""
        return "; ".join(f"client {c}: {why}" for c, why in list(self.lost.items())[:3])

    def exchange(self, requests: Mapping[str, Request]) -> dict[str, Frame]:
        """Send each client its request, then collect the answers.

        Parameters
        ----------
        requests
            By client; clients that are gone are passed over.

        Returns
        -------
        dict
            Answers by client, in the cohort's order. A client that is lost, leaves or answers
            wrongly is dropped and missing here; one that is late is missing. Where all are late the
            exchange waits on, until one has answered or all have missed too many deadlines.
        """
        asked = [c for c in self.clients if c in requests and self._send(c, requests[c])]
        replies = self._collect(asked)
        while not replies and (waiting := [c for c in asked if c in self.late]):
            replies = self._collect(waiting)
        return replies

    def catch_up(self, *, wait: bool = False) -> dict[str, Frame]:
        """Return what late clients have answered meanwhile; they are late no more.

        Parameters
        ----------
        wait
            Whether to wait until one has answered or all have missed too many deadlines.
        """
        replies = self._collect(list(self.late), due=False)
        while wait and not replies and self.late:
            replies = self._collect(list(self.late))
        return replies

    def _collect(self, clients: Iterable[str], *, due: bool = True) -> dict[str, Frame]:
        """Wait for the answers of several clients, or only look whether they are there."""
        deadline = time.monotonic() + (self.timeout_s if due else 0.0)
        replies = {c: self._receive(c, deadline, due=due) for c in clients}
        return {client: reply for client, reply in replies.items() if reply is not None}

    def _send(self, client: str, request: Request) -> bool:
        """Send one request and book it; False when the client is gone."""
        member = self._members[client]
        member.seq += 1
        member.asked = request.kind
        frame = Frame(request.kind, client, member.seq, request.fields, request.tensors)
        before = member.link.wire_bytes_down
        try:
            member.link.send(frame)
        except FedloraError as error:
            self._lose(client, error)
            return False
        self._book(client, "down", frame.tensors, member.link.wire_bytes_down - before)
        return True

    def _receive(self, client: str, deadline: float, *, due: bool) -> Frame | None:
        """Return one answer and book it; None when the client is late, is lost or leaves."""
        link = self._members[client].link
        before = link.wire_bytes_up
        try:
            reply = link.receive(max(0.0, deadline - time.monotonic()))
        except ClientLate as error:
            if due:
                self._miss(client, error)
            return None
        except FedloraError as error:
            self._lose(client, error)
            return None
        self.late.pop(client, None)
        if reply.kind == m.LEAVE:
            self.drop(client, told(reply.fields) or "it gave no reason")
            return None
        self._book(client, "up", reply.tensors, link.wire_bytes_up - before)
        return reply

    def _miss(self, client: str, error: ClientLate) -> None:
        """Note that a client missed a deadline; lose it when it was one too many."""
        kind = self._members[client].asked
        if not self.deployed:
            raise FedloraError(
                f"{error} to {kind!r}, and a simulation does not go on without it; set "
                "link.step_timeout_s higher, or simulate fewer clients"
            )
        self.late[client] = kind
        self.misses[client] += 1
        misses = f"miss {self.misses[client]} of {self.max_misses} in this round"
        log.warning("%s to %r: %s", error, kind, misses)
        if self.misses[client] >= self.max_misses:
            self._lose(client, ClientLost(f"{error}, {misses}"))

    def ask(self, clients: Iterable[str], request: Request) -> dict[str, Frame]:
        """Send several clients the same request, and collect the answers."""
        return self.exchange(dict.fromkeys(clients, request))

    def expect(self, client: str, reply: Frame, *kinds: str) -> None:
        """Check the kind of an answer; raises ``ProtocolError`` when it is another."""
        if reply.kind not in kinds:
            raise ProtocolError(
                f"client {client} answered {reply.kind[:40]!r} where {' or '.join(kinds)} was due"
            )

    def close(self) -> None:
        """Close every link."""
        for member in self._members.values():
            member.link.close("the run has ended")


def natural(name: str) -> tuple[int, int, str]:
    """Return a key that sorts numeric names by value, before all others."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)
