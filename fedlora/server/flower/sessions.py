"""The clients' sessions: invited through Flower, connected over the tensor stream."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from flwr.app import DEFAULT_TTL, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedlora.config import Scenario, scenario_to_toml
from fedlora.errors import ClientLost, FedloraError, printable
from fedlora.launch.killed import ended_by_ray
from fedlora.link import ERROR, Frame, told
from fedlora.link.stream import TokenStore, address_of, dialled
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.listener import StreamServer
from fedlora.link.stream.tls import create_identity
from fedlora.server.exchange.arrivals import Arrivals
from fedlora.server.exchange.cohort import MOST_LOSSES
from fedlora.server.flower.late_nodes import LateNodes
from fedlora.server.flower.nodes import RECORD, Node
from fedlora.server.run import ServerRun

log = logging.getLogger("fedlora.server")

SESSION = "train.session"
_POLL_S = 0.2
_SOON_S = 0.01  # between two looks for who is ready
_LOOK_S = 5.0
_MOST_DOUBLINGS = 4  # of the time that a device has to connect
_QUEUE_FRAMES = 16  # what a device that is late for two rounds is asked meanwhile


@dataclass(frozen=True)
class Places:
    """Where the clients of a run keep what they keep.

    Attributes
    ----------
    run
        The run's name, by which a device finds its own folders again.
    hosts
        Edge host of each simulated client.
    states, ledgers
        Folders for simulated clients' states and privacy ledgers; the latter may be None.
    """

    run: str
    hosts: Mapping[int, str] = field(default_factory=dict)
    states: Path = Path()
    ledgers: Path | None = None


class Sessions:
    """The tensor stream and every node's session, as a context manager.

    Parameters
    ----------
    grid
        Flower's way to the nodes.
    server
        Takes in those who connect.
    nodes
        Who is invited.
    places
        What the invitations say of folders and hosts.

    Attributes
    ----------
    newcomers
        Clients that came when the run was under way, until they are told where it stands.

    Raises
    ------
    FedloraError
        When the stream's port cannot be bound.
    """

    def __init__(
        self, grid: Grid, server: ServerRun, nodes: Sequence[Node], places: Places
    ) -> None:
        self._grid = grid
        self._server = server
        self._scenario = server.scenario
        self._nodes = {str(node.client): node for node in nodes}
        self._places = places
        self._open: dict[str, str] = {}  # client of each invitation that Flower has not answered
        self._invited: dict[str, float] = {}  # and when the invitation ends
        self._tries: Counter[str] = Counter()  # invitations since it was last connected
        self._refused: dict[str, str] = {}  # why this server did not admit a client
        self._tokens = TokenStore()
        self._late = LateNodes(grid, self._scenario.federation)
        self.newcomers: set[str] = set()
        self._arrivals = Arrivals()
        self._broken_off = ""
        server.cohort.deployed = not all(node.simulated for node in nodes)
        server.cohort.whole = not server.cohort.deployed
        link = self._scenario.link
        self._stream = StreamServer(
            link.host,
            link.port,
            identity=create_identity(link.public_host),
            max_frame_bytes=link.max_frame_mib << 20,
            queue_frames=max(_QUEUE_FRAMES, link.max_misses + 1),
            give_up_s=link.give_up_s,
            admit=self._admit,
            tokens=self._tokens,
        )

    def __enter__(self) -> Sessions:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.stop()

    def break_off(self, reason: str) -> None:
        """Let nobody wait any longer for a client, from another thread; see ``Cohort.whole``."""
        self._broken_off = reason
        self._server.cohort.close(reason)

    def open(self) -> None:
        """Invite all nodes, and wait until each has connected, failed, or run out of time.

        Raises
        ------
        FedloraError
            When fewer than ``federation.min_clients`` connected, those included that died on the
            way and were invited again.
        """
        limit_s = self._scenario.federation.connect_timeout_s
        text = scenario_to_toml(self._scenario)
        digest = hashlib.sha256(text.encode()).hexdigest()  # which each device's own log has, too
        log.info("clients are invited with the scenario of sha256 %s", digest)
        self._invite(self._nodes)
        self._wait(lambda: not self._invited, limit_s)
        for client in sorted(self._invited, key=int):
            limit = f"federation.connect_timeout_s, {limit_s:g} s"
            self._fail(client, f"did not connect within {limit}", may_return=True)
        self.readmit()
        there, wanted = len(self._server.cohort.clients), self._scenario.federation.clients
        if there < wanted:
            log.warning(
                "the run begins with %d of %d clients (federation.clients); who comes later is "
                "taken in between two rounds",
                there,
                wanted,
            )

    def readmit(self) -> list[str]:
        """Between two rounds: invite devices that were lost or have come, and take in who is here.

        Where fewer than ``federation.min_clients`` are left the run pauses here, at most for
        ``federation.connect_timeout_s``.

        Returns
        -------
        list of str
            Clients that are back, or new, and have to be told where the run stands.

        Raises
        ------
        FedloraError
            When after that they are still too few.
        """
        least, cohort = self._scenario.federation.min_clients, self._server.cohort
        before = set(cohort.clients)
        deadline = time.monotonic() + self._scenario.federation.connect_timeout_s
        self._invite(self._reachable())
        self._wait(lambda: True, 0.0)
        if len(cohort.clients) < least and self._may_come():
            log.warning(
                "the run pauses: %d clients are connected, federation.min_clients is %d (%s)",
                len(cohort.clients),
                least,
                cohort.reasons(),
            )
        while len(cohort.clients) < least and self._may_come() and time.monotonic() < deadline:
            self._wait(lambda: len(cohort.clients) >= least or not self._invited, _LOOK_S)
            self._invite(self._reachable())
        if len(cohort.clients) < least:
            raise FedloraError(
                f"{len(cohort.clients)} of {len(self._nodes)} clients are connected, "
                f"federation.min_clients is {least} ({cohort.reasons()}); mend that and start "
                "again"
            )
        return [client for client in cohort.clients if client not in before]

    def _may_come(self) -> bool:
        """Tell whether a device is on its way, or may be invited once it is reachable."""
        return bool(self._invited) or bool(self._lost())

    def _lost(self) -> list[str]:
        """Return devices that are gone, and were not lost too often."""
        cohort = self._server.cohort
        return [
            client
            for client in sorted(cohort.may_return, key=int)
            if not self._nodes[client].simulated and cohort.times_lost[client] <= MOST_LOSSES
        ]

    def _reachable(self) -> list[str]:
        """Return lost devices that can be reached now and hold no invitation that is valid.

        So are those that come late. A SuperNode that started again may have another number.
        """
        cohort, now = self._server.cohort, time.monotonic()
        lost = [client for client in self._lost() if self._invited.get(client, 0.0) <= now]
        if not cohort.deployed or not (lost or self._late.due):
            return []
        online = set(self._grid.get_node_ids())
        for client, node in self._late.seat(online, self._nodes, lost).items():
            if client not in self._nodes:
                self.newcomers.add(client)
                cohort.lost[client] = "it has come late, and has not connected"
                cohort.may_return.add(client)
                lost.append(client)
                log.info("node %d is invited as client %s, late", node.id, client)
            self._nodes[client] = node
        return [client for client in lost if self._nodes[client].id in online]

    def _invite(self, clients: Iterable[str]) -> None:
        """Send nodes their session message, with a token that opens one session."""
        messages, invited = [], list(clients)
        for client in invited:
            node = self._nodes[client]
            record = ConfigRecord(self._invitation(client, node))
            messages.append(
                Message(
                    RecordDict({RECORD: record}),
                    dst_node_id=node.id,
                    message_type=SESSION,
                    ttl=session_ttl_s(self._scenario),
                )
            )
        if messages:
            # The answer to an earlier invitation tells of a session that is over.
            self._open = {m: c for m, c in self._open.items() if c not in invited}
            self._open |= dict(zip(self._grid.push_messages(messages), invited, strict=True))
            for client in invited:
                self._invited[client] = time.monotonic() + self._valid_s(client)
                self._tries[client] += 1

    def _valid_s(self, client: str) -> float:
        """Return how long a client may take to connect: a slow device has longer the next time."""
        limit_s = self._scenario.federation.connect_timeout_s
        return limit_s * 2.0 ** min(self._tries[client], _MOST_DOUBLINGS)

    def _invitation(self, client: str, node: Node) -> dict[str, Any]:
        link, places = self._scenario.link, self._places
        ledgers = places.ledgers if node.simulated else None
        return {
            "scenario": scenario_to_toml(self._scenario),
            "address": address_of(dialled(link.host, link.public_host), self._stream.port),
            "certificate": self._stream.certificate_pem or b"",
            "token": self._tokens.grant(client, self._valid_s(client)),
            "client": node.client,
            "clients": max(len(self._nodes), self._scenario.federation.clients),
            "host": places.hosts.get(node.client, ""),
            "run": places.run,
            "keep": str(places.states) if node.simulated else "",
            "ledgers": str(ledgers) if ledgers else "",
        }

    def _admit(self, hello: Frame, grantee: str) -> dict[str, Any]:
        if hello.client != grantee:
            raise FedloraError(f"the token was granted to client {grantee}, not {hello.client}")
        try:
            return self._server.admit(hello)
        except FedloraError as error:
            self._refused[grantee] = printable(error)
            raise

    def _wait(self, done: Callable[[], bool], limit_s: float) -> None:
        """Take in clients and note failures until all is done or time is up; look once at least."""
        deadline, next_poll = time.monotonic() + limit_s, 0.0
        while True:
            link = self._stream.accept(_SOON_S if self._arrivals else _POLL_S if limit_s else 0.01)
            if link is not None:
                self._arrivals.add(link)
            for arrived, answer in self._arrivals.ready():
                self._take_in(arrived, answer)
            if link is not None:
                continue
            if self._broken_off:
                raise FedloraError(self._broken_off)
            if time.monotonic() >= next_poll:
                self._poll()
                next_poll = time.monotonic() + 1.0
            if done() or time.monotonic() >= deadline:
                return

    def _take_in(self, link: StreamLink, answer: Frame | FedloraError) -> None:
        cohort = self._server.cohort
        try:
            if isinstance(answer, FedloraError):
                raise answer
            cohort.drop(link.client, "it connects anew", returns=True)
            self._server.join(link, link.hello, answer)
        except ClientLost as error:  # it may connect anew, or Flower tells what became of it
            log.warning("client %s connected and was lost: %s", link.client, error)
            cohort.lost.setdefault(link.client, printable(error))
            cohort.may_return.add(link.client)
            link.close(str(error))
        except FedloraError as error:
            self._fail(link.client, str(error))
            link.close(str(error))  # or it would wait for requests, and keep its ledger locked
        else:
            log.info("client %s is connected", link.client)
            self._invited.pop(link.client, None)
            del self._tries[link.client]

    def _poll(self) -> None:
        """Take note of the nodes whose ClientApp failed or refused."""
        if not self._open:
            return
        cohort = self._server.cohort
        for message in self._grid.pull_messages(list(self._open)):
            client = self._open.pop(message.metadata.reply_to_message_id)
            if client not in self._invited:
                continue
            if not message.has_error():
                answer = dict(message.content.get(RECORD, {ERROR: "its answer says nothing"}))
                reason = told(answer, ERROR)
                if answer.get(ERROR) == "dropped":  # a device does not repeat the server's words
                    reason = self._refused.pop(client, reason)
                if reason:
                    self._fail(client, reason, may_return=client in cohort.may_return)
            elif message.error.code == ErrorCode.NODE_UNAVAILABLE:
                why = printable(message.error.reason)
                log.info("client %s cannot be reached: %s", client, why)
                del self._invited[client]  # it is invited again once Flower sees it
                cohort.lost.setdefault(client, "Flower cannot reach it")
                cohort.may_return.add(client)
            else:
                said = message.error.reason
                gone = "" if cohort.deployed else ended_by_ray("the worker that carries it", said)
                reason = gone or f"its ClientApp failed ({said})"
                self._fail(client, reason, may_return=True)

    def _fail(self, client: str, reason: str, *, may_return: bool = False) -> None:
        """Note why a client did not connect; one that died or was silent is invited again.

        Raises
        ------
        FedloraError
            In a simulation: whoever is missing there is not away but cannot be made, and the
            result would be that of another federation than the scenario's.
        """
        if not self._server.cohort.deployed:
            raise FedloraError(f"client {client} of the simulation does not take part: {reason}")
        reason = printable(reason, 500)
        log.warning("client %s does not take part: %s", client, reason)
        self._invited.pop(client, None)
        cohort = self._server.cohort
        cohort.lost[client] = reason
        if may_return:
            cohort.may_return.add(client)
            cohort.times_lost[client] += 1
        else:
            cohort.may_return.discard(client)


def session_ttl_s(scenario: Scenario) -> float:
    """Return how long a session may last: every exchange as long as it may take, and 12 h more."""
    train = scenario.train
    exchanges = 2 * train.total_steps * train.accumulate + 10 * train.rounds
    return float(DEFAULT_TTL) + exchanges * scenario.link.step_timeout_s
