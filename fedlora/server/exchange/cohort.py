"""The connected clients: ask them all, wait for them all, go on without stragglers and lost ones.

A straggler (late client) keeps its place: the exchange goes on without it, and its answer is taken
when it comes. What came too late for a step is left out of the step's average.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fedlora.errors import ClientLate, ClientLost, FedloraError, ProtocolError, printable
from fedlora.link import Frame, Message, messages as m, told
from fedlora.server.exchange.member import BookFrame, Member, natural
from fedlora.server.exchange.patience import Patience

log = logging.getLogger("fedlora.server")

_MOST_REASON = 500  # characters
MOST_LOSSES = 3
"""A device that was lost or late more often in a run is not invited any more."""


_MANY = (m.STEP, m.EMBEDDING, m.EVAL, m.AGAIN)  # the requests of which a round has many
_LOOK, _LOOK_S = 0.1, 0.0005  # between two looks, of the time so far and in seconds


class OutOfPatience(ClientLate):
    """A device was not waited for until the deadline, as the others had waited for it before."""


@dataclass(frozen=True)
class Asked:
    """Requests whose answers are not collected yet.

    Attributes
    ----------
    clients
        Who was sent one, in the cohort's order.
    sent_s
        When the first was sent, by the monotonic clock.
    """

    clients: Sequence[str]
    sent_s: float


class Cohort:
    """All clients of a run by identifier, in a fixed order.

    Who misses the deadline of an exchange is late: it stays, the exchange goes on without it, and
    its answer is taken when it comes. After ``max_misses`` of them it is lost. Who has used up the
    others' ``Patience`` is late at once, which counts as no miss. In a simulation only the modelled
    clock may decide who is late, so a deadline that passes there ends the run.

    Parameters
    ----------
    timeout_s
        How long the answers to one exchange may take.
    book
        Called for every frame that travels with client, direction (``up`` or ``down``), tensors and
        size in bytes.
    max_misses
        Deadlines that a client may miss until ``begin_round`` is called.
    patience
        Seconds that each second of the run adds to what one device may keep the others waiting.

    Attributes
    ----------
    deployed
        Whether clients are devices, so that the wall clock decides who is late.
    whole
        Whether a client that is lost ends the run: one of a simulation whose process is gone.
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

    def __init__(
        self, timeout_s: float, book: BookFrame, max_misses: int = 3, patience: float = 0.3
    ) -> None:
        self.timeout_s = timeout_s
        self.patience = Patience(timeout_s, patience)
        self.max_misses = max_misses
        self.deployed = self.whole = False
        self.late: dict[str, str] = {}
        self._late_since: dict[str, float] = {}
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

    def drop(self, client: str, reason: str, *, returns: bool = False) -> None:
        """Leave a client out from now on, and say why, and whether it is invited again."""
        member = self._members.pop(client, None)
        if member is None:
            return
        self.lost[client] = reason = printable(reason, _MOST_REASON)
        self._late_since.pop(client, None)
        self.late.pop(client, None)
        what = "is away, and is invited again" if returns else "leaves the run"
        log.warning("client %s %s: %s", client, what, reason)
        member.link.close(reason)

    def lose(self, client: str, error: FedloraError) -> None:
        """Leave a client out; one that was lost, rather than that it erred, may return.

        Raises
        ------
        FedloraError
            When it is lost and the cohort has to be whole.
        """
        lost = isinstance(error, ClientLost)
        if lost and self.whole:
            raise FedloraError(f"{error}, and a simulation does not go on without it") from error
        again = lost and self.deployed and self.times_lost[client] < MOST_LOSSES
        self.drop(client, str(error), returns=again)
        if lost:
            self.may_return.add(client)
            self.times_lost[client] += 1

    def begin_round(self) -> None:
        """Forget the misses of the round before."""
        self.misses.clear()

    def reasons(self) -> str:
        """Say why the first few of the lost clients left; empty when none did."""
        return "; ".join(f"client {c}: {why}" for c, why in list(self.lost.items())[:3])

    def exchange(
        self,
        requests: Mapping[str, Message],
        waiting: Iterable[str] = (),
        since_s: float = math.inf,
    ) -> dict[str, Frame]:
        """Send each client its request, then collect the answers.

        Parameters
        ----------
        requests
            By client; clients that are gone are passed over.
        waiting
            Others that have done their part and wait for these.
        since_s
            Since when, by the monotonic clock, where the server has worked for these alone before
            it asks them: that keeps the others waiting as their answers do.

        Returns
        -------
        dict
            Answers by client, in the cohort's order. A client that is lost, leaves or answers
            wrongly is dropped and missing here; one that is late is missing. Where all are late the
            exchange waits on, until one has answered or all have missed too many deadlines.
        """
        asked = self.send(requests)
        idle = sum(1 for c in waiting if c in self and c not in requests)
        began_s = min(asked.sent_s, since_s)
        replies = self._collect(asked.clients, idle=idle, sent_s=began_s)
        return replies if replies or idle else self.one_of(asked.clients)

    def send(self, requests: Mapping[str, Message]) -> Asked:
        """Send each client its request; ``collect`` then waits for the answers."""
        sent_s = time.monotonic()  # an answer may come before the last request is sent
        return Asked(
            [c for c in self.clients if c in requests and self._send(c, requests[c])], sent_s
        )

    def collect(self, asked: Asked, beside: Sequence[Asked] = ()) -> dict[str, Frame]:
        """Collect the answers to what was sent; who is late is missing, see ``exchange``.

        Parameters
        ----------
        asked
            What was sent.
        beside
            What else of the same step was: how long one is waited for depends on when most of all
            have answered.
        """
        there = [client for client in asked.clients if client in self]
        return self._collect(there, sent_s=asked.sent_s, beside=beside)

    def one_of(self, clients: Iterable[str]) -> dict[str, Frame]:
        """Wait until one of those who are late has answered, or all have missed too much."""
        replies: dict[str, Frame] = {}
        while not replies and (late := [c for c in clients if c in self.late]):
            replies = self._collect(late)
        return replies

    def catch_up(self, *, wait: bool = False) -> dict[str, Frame]:
        """Return what late clients have answered meanwhile; they are late no more.

        Parameters
        ----------
        wait
            Whether to wait until one has answered or all have missed too many deadlines.
        """
        replies = self._collect(list(self.late), due=False)
        return self.one_of(list(self.late)) if wait and not replies else replies

    def _collect(
        self,
        clients: Sequence[str],
        *,
        due: bool = True,
        idle: int = 0,
        sent_s: float = math.inf,
        beside: Sequence[Asked] = (),
    ) -> dict[str, Frame]:
        """Wait for the answers of several clients, or only look whether they are there."""
        now = time.monotonic()
        asked_s, deadline = min(now, sent_s), now + (self.timeout_s if due else 0.0)
        # Beside others, the server has worked meanwhile, and nobody has waited for these.
        began = now if beside else asked_s
        if not (self.deployed and due):
            replies = {c: self._receive(c, deadline, due=due) for c in clients}
            return {client: reply for client, reply in replies.items() if reply is not None}
        since = dict.fromkeys(clients, asked_s)
        since |= {c: other.sent_s for other in beside for c in other.clients if c in self}
        links = {client: self._members[client].link for client in since}

        def majority_s() -> float | None:
            return self.patience.majority_s(answered(), links, began, idle)

        def answered() -> dict[str, float]:
            return {c: link.answered_s for c, link in links.items() if link.answered_s >= since[c]}

        found = {}
        for client in clients:
            wait = partial(self._wait, client, began, deadline, majority_s)
            reply = self._receive(client, deadline, due=True, wait=wait)
            if reply is not None:
                found[client] = reply
        self.patience.count(answered(), clients, majority_s())
        return found

    def _wait(
        self, client: str, began: float, deadline: float, majority_s: Callable[[], float | None]
    ) -> Frame:
        """Return a device's answer, or raise ``ClientLate`` when it has to be gone on without."""
        member = self._members[client]
        link, left_s = member.link, self.patience.left(client, member.asked in _MANY)
        now = time.monotonic()
        while True:
            # Nobody's patience ends before that; after it, a look now and then whether it has.
            until = min(deadline, max(began + left_s, now + _LOOK * (now - began), now + _LOOK_S))
            try:
                return link.receive(max(0.0, until - now))
            except ClientLate:
                early = time.monotonic() < until
                now = time.monotonic()
                if early or now >= deadline:
                    raise
            since = majority_s()
            if since is not None and now >= since + left_s:
                raise OutOfPatience(
                    f"client {client} is slower than the others, who have waited for it before"
                )

    def _send(self, client: str, request: Message) -> bool:
        """Send one request and book it; False when the client is gone."""
        member = self._members[client]
        member.seq += 1
        member.asked = request.KIND
        frame = request.to_frame(client, member.seq)
        before = member.link.wire_bytes_down
        try:
            member.link.send(frame)
        except FedloraError as error:
            self.lose(client, error)
            return False
        self._book(client, "down", frame.tensors, member.link.wire_bytes_down - before)
        return True

    def _receive(
        self,
        client: str,
        deadline: float,
        *,
        due: bool,
        wait: Callable[[], Frame] | None = None,
    ) -> Frame | None:
        """Return one answer and book it; None when the client is late, is lost or leaves."""
        link = self._members[client].link
        before = link.wire_bytes_up
        try:
            reply = wait() if wait else link.receive(max(0.0, deadline - time.monotonic()))
        except ClientLate as error:
            if due:
                self._miss(client, error)
            return None
        except FedloraError as error:
            self.lose(client, error)
            return None
        self.late.pop(client, None)
        self._late_since.pop(client, None)
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
        silent_s = time.monotonic() - self._late_since.setdefault(client, time.monotonic())
        if silent_s > self.max_misses * self.timeout_s:
            self.lose(client, ClientLost(f"client {client} was silent for {silent_s:.0f} s"))
            return
        if isinstance(error, OutOfPatience):
            log.info("%s: %r goes on without it", error, kind)
            return
        self.misses[client] += 1
        misses = f"miss {self.misses[client]} of {self.max_misses} in this round"
        log.warning("%s to %r: %s", error, kind, misses)
        if self.misses[client] >= self.max_misses:
            self.lose(client, ClientLost(f"{error}, {misses}"))

    def ask(
        self, clients: Iterable[str], request: Message, waiting: Iterable[str] = ()
    ) -> dict[str, Frame]:
        """Send several clients the same request, and collect the answers; see ``exchange``."""
        return self.exchange(dict.fromkeys(clients, request), waiting)

    def expect(self, client: str, reply: Frame, *kinds: str) -> None:
        """Check the kind of an answer; raises ``ProtocolError`` when it is another."""
        if reply.kind not in kinds:
            raise ProtocolError(
                f"client {client} answered {reply.kind[:40]!r} where {' or '.join(kinds)} was due"
            )

    def close(self, reason: str = "the run has ended") -> None:
        """Close every link; may be called from any thread."""
        for member in list(self._members.values()):
            member.link.close(reason)
