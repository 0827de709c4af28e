"""A stream that breaks inside a session costs nothing: no request, no reply, no second answer."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import grpc
import pytest
import torch
from support.link_peers import LIMIT, HostilePeer, ask, echo, hello
from support.patience import patient
from support.relay import Relay

from fedlora.errors import ClientLate, ClientLost
from fedlora.link import Frame, decode_frame, encode_frame, messages as m
from fedlora.link.stream import CLOSED, REFUSED, RESUME, RESUME_KEY, RESUMED, SECRET
from fedlora.link.stream.client.client import StreamClient
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.listener import StreamServer

Start = Callable[..., StreamServer]


class Edge:
    """Clients behind a relay; counts how often each request was computed, and holds replies."""

    def __init__(self, server: StreamServer, relay: Relay, **options: float) -> None:
        self.server = server
        self.computed: Counter[tuple[str, int]] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.stream = StreamClient(
            f"127.0.0.1:{relay.port}",
            server.certificate_pem,
            max_frame_bytes=LIMIT,
            workers=2,
            **{"give_up_s": 30.0} | options,
        )

    def handle(self, frame: Frame) -> Frame:
        self.computed[frame.client, frame.seq] += 1
        self.entered.set()
        assert self.gate.wait(30.0)
        reply = echo(frame)
        noise = {"noise": torch.rand(8)} if frame.kind == m.STEP else {}
        return Frame(reply.kind, reply.client, reply.seq, reply.fields, {**reply.tensors, **noise})

    def join(self, client: str) -> tuple[Future[None], StreamLink]:
        greeting = hello(client, self.server.tokens.grant(client, 60.0))
        session = self.stream.attach(client, self.handle, greeting)
        link = self.server.accept(20.0)
        assert link is not None
        assert link.receive(10.0).kind == m.READY
        return session, link


@pytest.fixture
def server(start: Start) -> StreamServer:
    return start(give_up_s=30.0)


@pytest.fixture
def relay(server: StreamServer) -> Iterator[Relay]:
    with Relay(server.port) as relay:
        yield relay


@pytest.fixture
def edge(server: StreamServer, relay: Relay) -> Iterator[Edge]:
    edge = Edge(server, relay)
    yield edge
    edge.gate.set()
    edge.stream.close(timeout_s=1.0)


def step(client: str, seq: int) -> Frame:
    return Frame(m.STEP, client, seq, {"n": seq}, {"z": torch.full((5000,), float(seq))})


def test_sessions_survive_breaks_at_any_moment_and_each_request_is_computed_once(
    edge: Edge, relay: Relay
) -> None:
    sessions = [edge.join(name) for name in ("a", "b", "c")]
    stop, answered = threading.Event(), threading.Event()

    def disturb() -> None:
        chance = random.Random(7)
        while not stop.wait(chance.uniform(0.1, 0.4)):
            relay.reset()
            answered.clear()
            answered.wait(20.0)  # or a busy machine might never get through between two breaks

    thread = threading.Thread(target=disturb)
    thread.start()
    seq = 0
    try:
        while seq < 40 or relay.resets <= 3:
            seq += 1
            for _, link in sessions:
                link.send(step(link.client, seq))
            for _, link in sessions:
                reply = link.receive(20.0)
                assert (reply.client, reply.seq, reply.fields) == (link.client, seq, {"n": seq})
                assert torch.equal(reply.tensors["z"], torch.full((5000,), float(seq)))
            answered.set()
            time.sleep(0.03)
    finally:
        stop.set()
        answered.set()
        thread.join()
    assert sum(link.reconnects for _, link in sessions) > 3
    for session, link in sessions:
        assert ask(link, Frame(m.END, link.client, seq + 1)).kind == m.RESULT
        session.result(10.0)
    assert set(edge.computed.values()) == {1}


def test_a_request_that_was_lost_on_the_way_comes_again(edge: Edge, relay: Relay) -> None:
    _, link = edge.join("a")
    relay.stall(True)
    link.send(step("a", 1))
    time.sleep(0.2)
    relay.reset()
    relay.stall(False)
    assert link.receive(20.0).fields == {"n": 1}
    assert edge.computed["a", 1] == 1


def test_a_reply_that_was_lost_is_sent_again_byte_for_byte(
    edge: Edge, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, link = edge.join("a")
    edge.entered.clear()
    edge.gate.clear()
    link.send(step("a", 1))
    assert edge.entered.wait(10.0)
    relay.stall(True)  # what is sent from now on is lost
    edge.gate.set()
    [session] = edge.stream._sessions.all()
    wait_for(lambda: session.kept(1) != b"")
    time.sleep(0.1)
    sent = session.kept(1)
    relay.reset()
    relay.stall(False)
    reply = link.receive(20.0)
    assert encode_frame(reply) == sent
    assert edge.computed["a", 1] == 1


def test_a_client_that_comes_back_while_it_computes_answers_when_it_has(
    edge: Edge, relay: Relay
) -> None:
    _, link = edge.join("a")
    edge.entered.clear()
    edge.gate.clear()
    link.send(step("a", 1))
    assert edge.entered.wait(10.0)
    relay.reset()
    wait_for(lambda: link.reconnects == 1)
    edge.gate.set()
    assert link.receive(20.0).fields == {"n": 1}
    assert edge.computed["a", 1] == 1


def test_requests_made_while_the_client_is_away_wait_for_it_in_order(
    edge: Edge, relay: Relay
) -> None:
    _, link = edge.join("a")
    relay.refusing = True
    relay.reset()
    wait_for(lambda: bool(link.away))
    link.send(Frame(m.HEAD, "a", 1, {"n": 1}))
    with pytest.raises(ClientLate, match=r"gave no reply in 0\.05 s \(its stream broke"):
        link.receive(0.05)
    link.send(Frame(m.EVAL_BEGIN, "a", 2, {"n": 2}))
    relay.refusing = False
    assert link.receive(20.0).fields == {"n": 2}
    assert [seq for _, seq in edge.computed] == [0, 1, 2]


def test_a_late_reply_to_an_earlier_request_is_passed_over_after_a_break(
    edge: Edge, relay: Relay
) -> None:
    _, link = edge.join("a")
    edge.entered.clear()
    edge.gate.clear()
    link.send(step("a", 1))
    assert edge.entered.wait(10.0)
    with pytest.raises(ClientLate):
        link.receive(0.05)
    link.send(step("a", 2))
    time.sleep(0.2)
    relay.reset()
    wait_for(lambda: link.reconnects == 1)
    edge.gate.set()
    assert link.receive(20.0).fields == {"n": 2}
    assert ask(link, step("a", 3), 20.0).fields == {"n": 3}
    assert not link.lost


def test_the_last_words_of_a_session_reach_the_server_after_a_break(
    edge: Edge, relay: Relay
) -> None:
    session, link = edge.join("a")
    edge.entered.clear()
    edge.gate.clear()
    link.send(Frame(m.END, "a", 1))
    assert edge.entered.wait(10.0)
    relay.refusing = True
    relay.reset()
    wait_for(lambda: bool(link.away))
    edge.gate.set()
    time.sleep(0.2)
    assert not session.done()
    relay.refusing = False
    assert link.receive(20.0).kind == m.RESULT
    session.result(10.0)


def test_last_words_that_were_lost_on_the_way_are_said_again(edge: Edge, relay: Relay) -> None:
    session, link = edge.join("a")
    edge.entered.clear()
    edge.gate.clear()
    link.send(Frame(m.END, "a", 1))
    assert edge.entered.wait(10.0)
    relay.stall(True)  # what is sent from now on is lost, and the client does not know it
    edge.gate.set()
    time.sleep(0.2)
    assert not session.done()
    relay.reset()
    relay.stall(False)
    assert link.receive(20.0).kind == m.RESULT
    session.result(10.0)
    assert edge.computed["a", 1] == 1


def test_a_break_in_the_handshake_does_not_use_up_the_token(edge: Edge, relay: Relay) -> None:
    token = edge.server.tokens.grant("a", 60.0)
    relay.stall(True)
    edge.stream.attach("a", edge.handle, hello("a", token))
    time.sleep(0.2)
    relay.reset()
    relay.stall(False)
    link = edge.server.accept(20.0)
    assert link is not None
    assert link.receive(20.0).kind == m.READY
    relay.reset()  # and in the session neither
    assert ask(link, step("a", 1), 20.0).fields == {"n": 1}


def test_a_client_that_does_not_come_back_is_lost_after_the_time_it_has(
    start: Start,
) -> None:
    server = start(give_up_s=0.5)
    with Relay(server.port) as relay:
        edge = Edge(server, relay, give_up_s=0.5)
        session, link = edge.join("a")
        relay.refusing = True
        relay.reset()
        with pytest.raises(ClientLost, match=r"did not come back in 0\.5 s"):
            ask(link, step("a", 1), 20.0)
        with pytest.raises(ClientLost, match=r"given up after 0\.5 s"):
            session.result(20.0)
        edge.stream.close()


def test_a_server_that_is_slow_to_answer_is_waited_for_however_short_dialling_is(
    start: Start,
) -> None:
    server = start(give_up_s=0.2)
    with Relay(server.port) as relay:
        edge = Edge(server, relay, give_up_s=0.2)
        relay.stall(True)
        session = edge.stream.attach("a", edge.handle, hello("a", server.tokens.grant("a", 60.0)))
        with pytest.raises(TimeoutError):
            session.exception(1.0)
        relay.stall(False)
        link = server.accept(20.0)
        assert link is not None
        assert link.receive(20.0).kind == m.READY
        edge.stream.close()


def test_a_silent_client_is_noticed_while_a_ping_of_grpcs_own_is_on_its_way(start: Start) -> None:
    """With what goes up gRPC sends such a ping, to learn the bandwidth."""
    server = start(keepalive_s=0.5, keepalive_timeout_s=1.0)
    with Relay(server.port) as relay:
        edge = Edge(server, relay, give_up_s=0.0)
        _, link = edge.join("a")
        time.sleep(0.3)  # it does so now and then only
        relay.stall(True, "down")
        with pytest.raises(ClientLost, match="the server is silent"):
            edge.stream.probe("a", 1000, 0, limit_s=0.3)
        relay.stall(True)
        link.send(step("a", 1))
        with pytest.raises(ClientLost, match="died"):
            link.receive(20.0)
        edge.stream.close(timeout_s=1.0)


def test_one_session_that_is_over_does_not_keep_others_of_its_host_away(
    edge: Edge, relay: Relay
) -> None:
    (first, a), (second, b) = edge.join("a"), edge.join("b")
    relay.refusing = True
    relay.reset()
    wait_for(lambda: bool(a.away) and bool(b.away))
    a.close("missed 3 deadlines")
    relay.refusing = False
    assert ask(b, step("b", 1), 20.0).fields == {"n": 1}
    with pytest.raises(ClientLost, match="missed 3 deadlines"):
        first.result(10.0)
    assert not second.done()


def test_the_server_does_not_wait_for_absent_clients_when_it_stops(
    edge: Edge, relay: Relay
) -> None:
    _, link = edge.join("a")
    relay.refusing = True
    relay.reset()
    wait_for(lambda: bool(link.away))
    began = time.monotonic()
    edge.server.stop(grace_s=0.5)
    assert time.monotonic() - began < patient(8.0)
    assert "stopped" in link.lost


def admitted(server: StreamServer, peer: HostilePeer) -> tuple[StreamLink, str]:
    token = server.tokens.grant("a", 60.0)
    peer.open(token)
    peer.greet("a", token)
    link = server.accept(10.0)
    assert link is not None
    welcome = decode_frame(peer.read(), LIMIT)
    peer.send(encode_frame(Frame(m.READY, "a")))
    assert link.receive(10.0).kind == m.READY
    return link, str(welcome.fields[SECRET])


def resume(peer: HostilePeer, secret: str, received: object = 0, client: str = "a") -> Frame:
    peer.open(secret, key=RESUME_KEY)
    peer.send(encode_frame(Frame(RESUME, client, 0, {SECRET: secret, "received": received})))
    return decode_frame(peer.read(), LIMIT)


def test_a_secret_is_replaced_at_each_return_once_the_next_has_arrived(
    server: StreamServer, hostile: HostilePeer
) -> None:
    link, first = admitted(server, hostile)
    second = resume(hostile, first)
    assert (second.kind, second.fields["owed"]) == (RESUMED, -1)
    again = resume(hostile, first)  # as when the answer was lost with the stream
    assert again.kind == RESUMED
    third = again.fields[SECRET]
    link.send(step("a", 1))
    assert decode_frame(hostile.read(), LIMIT).kind == m.STEP
    hostile.send(encode_frame(Frame(m.GRADIENT, "a", 1)))
    assert link.receive(10.0).kind == m.GRADIENT
    for void in (first, second.fields[SECRET]):
        hostile.open(void, key=RESUME_KEY)
        code, reason = hostile.ending()
        assert code == grpc.StatusCode.UNAUTHENTICATED
        assert "replaced" in reason
    assert resume(hostile, third, received=1).kind == RESUMED
    link.close("the run has ended")
    assert decode_frame(hostile.read(), LIMIT).kind == CLOSED
    hostile.open(third, key=RESUME_KEY)
    assert hostile.ending()[0] == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("received", [None, True, -1, "0", 2, 10**30])
def test_a_position_that_the_client_cannot_be_at_is_refused(
    server: StreamServer, hostile: HostilePeer, received: object
) -> None:
    link, secret = admitted(server, hostile)
    link.send(step("a", 1))
    reply = resume(hostile, secret, received)
    assert reply.kind == REFUSED
    assert "received" in reply.fields["reason"]


def test_a_copy_of_a_client_that_lags_behind_is_refused(
    server: StreamServer, hostile: HostilePeer
) -> None:
    link, secret = admitted(server, hostile)
    link.send(step("a", 1))
    newest = resume(hostile, secret, received=1).fields[SECRET]
    reply = resume(hostile, newest, received=0)
    assert reply.kind == REFUSED
    assert "only one process" in reply.fields["reason"]


def test_a_secret_opens_no_session_of_another_client(
    server: StreamServer, hostile: HostilePeer, edge: Edge
) -> None:
    _, other = edge.join("b")
    _, secret = admitted(server, hostile)
    reply = resume(hostile, secret, client="b")
    assert reply.kind == REFUSED
    assert "that of client a" in reply.fields["reason"]
    assert ask(other, step("b", 1)).seq == 1


def wait_for(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + patient(limit_s)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
