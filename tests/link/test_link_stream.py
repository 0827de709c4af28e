"""The gRPC stream between honest peers: sessions, multiplexing, and how they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest
import torch
from support.link_peers import ask, echo, hello, in_thread
from support.patience import patient

from fedlora.errors import ClientLost, FedloraError, ProtocolError
from fedlora.link import Frame, encode_frame, messages as m
from fedlora.link.stream import CLOSED, TokenStore
from fedlora.link.stream.client.client import StreamClient
from fedlora.link.stream.server import listener as stream_server
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.listener import StreamServer
from fedlora.link.stream.tls import create_identity

Start = Callable[..., StreamServer]
Connect = Callable[..., StreamClient]
Join = Callable[..., StreamLink]


def step(client: str, seq: int, numbers: int = 1000) -> Frame:
    return Frame(m.STEP, client, seq, {"n": seq}, {"z": torch.full((numbers,), float(seq))})


def test_an_idle_stream_is_pinged_and_not_cut_for_it(
    start: Start, connect: Connect, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    """By default gRPC's server ends a stream at the third ping within five minutes."""
    server = start(keepalive_s=1.0)
    link = join(server, "a", stream=connect(server, keepalive_s=1.0))
    assert server.accept(6.0) is None
    assert ask(link, step("a", 1)).kind == m.GRADIENT
    assert not [record for record in caplog.records if record.name.startswith("fedlora.link")]


def test_a_session_runs_from_hello_to_result(
    server: StreamServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Frame] = []

    def handler(frame: Frame) -> Frame:
        seen.append(frame)
        return echo(frame)

    greeting = hello("a", server.tokens.grant("node 1", 60.0))
    session = in_thread(lambda: connect(server).serve({"a": handler}, [greeting]))
    link = server.accept(10.0)
    assert link is not None
    assert (link.client, link.grantee, link.hello.fields) == ("a", "node 1", greeting.fields)
    ready = link.receive(10.0)
    requests = [step("a", 1), step("a", 2), Frame(m.END, "a", 3)]
    replies = [ask(link, request) for request in requests]
    session.join(10.0)
    assert not session.is_alive()
    assert not caplog.records  # an orderly end is nothing to report
    with pytest.raises(ClientLost, match="its session has ended"):
        link.send(step("a", 4))
    assert [f.kind for f in seen] == [m.WELCOME, m.STEP, m.STEP, m.END]
    assert seen[0].fields["grantee"] == "node 1"
    assert [f.kind for f in replies] == [m.GRADIENT, m.GRADIENT, m.RESULT]
    assert torch.equal(replies[1].tensors["z"], requests[1].tensors["z"])
    thanks = Frame(CLOSED, "a", fields={"reason": ""})
    down = [Frame(m.WELCOME, "a", 0, seen[0].fields), *requests, thanks]
    assert link.wire_bytes_down == sum(len(encode_frame(f)) for f in down)
    assert link.wire_bytes_up == sum(len(encode_frame(f)) for f in [greeting, ready, *replies])


def test_plain_text_works_on_loopback_and_is_refused_beyond(start: Start, join: Join) -> None:
    link = join(start(identity=None), "a")
    assert ask(link, step("a", 1)).kind == m.GRADIENT
    with pytest.raises(FedloraError, match=r"'0\.0\.0\.0' is not loopback"):
        StreamServer(
            "0.0.0.0",
            0,
            identity=None,
            max_frame_bytes=1,
            admit=lambda h, g: {},
            tokens=TokenStore(),
        )
    for address in ("192.0.2.7:80", "no-port", ""):  # or its sessions would wait in vain
        with pytest.raises(FedloraError, match="is not loopback"):
            StreamClient(address, None, max_frame_bytes=1)


def test_clients_on_one_stream_answer_side_by_side(
    server: StreamServer, connect: Connect, join: Join
) -> None:
    both = threading.Barrier(2)

    def handler(frame: Frame) -> Frame:
        if frame.kind == m.STEP:
            both.wait(10.0)  # passes only while both clients compute
        return echo(frame)

    stream = connect(server, workers=2)
    links = [join(server, name, handler, stream) for name in ("a", "b")]
    for seq in range(1, 6):
        for link in links:
            link.send(step(link.client, seq, 100_000))
        for link in links:
            reply = link.receive(10.0)
            assert (reply.client, reply.seq) == (link.client, seq)
            assert torch.equal(reply.tensors["z"], torch.full((100_000,), float(seq)))


def test_many_clients_of_several_hosts_keep_their_frames_apart(
    server: StreamServer, connect: Connect, join: Join
) -> None:
    hosts = [connect(server, workers=2) for _ in range(3)]
    links = [join(server, f"c{i}", echo, hosts[i % 3]) for i in range(24)]
    for seq in range(1, 4):
        for i, link in enumerate(links):
            link.send(Frame(m.STEP, link.client, seq, {"i": i}, {"z": torch.full((64,), i)}))
        for i, link in enumerate(reversed(links)):
            reply = link.receive(10.0)
            assert reply.fields == {"i": 23 - i}
            assert torch.equal(reply.tensors["z"], torch.full((64,), 23 - i))


def test_a_host_serves_clients_one_after_the_other_and_opens_a_broken_stream_again(
    start: Start, connect: Connect
) -> None:
    server = start()
    stream = connect(server)

    def attach(client: str) -> tuple[Future[None], StreamLink]:
        greeting = hello(client, server.tokens.grant(client, 60.0))
        session = stream.attach(client, echo, greeting)
        link = server.accept(10.0)
        assert link is not None
        assert link.receive(10.0).kind == m.READY
        return session, link

    staying, _ = attach("stays")
    for client in ("a", "b", "a"):
        session, link = attach(client)
        assert not session.done()
        assert ask(link, Frame(m.END, client, 1)).kind == m.RESULT
        session.result(10.0)
    server.stop()
    assert isinstance(staying.exception(10.0), ClientLost)
    server = start(port=server.port)
    _, link = attach("a")
    assert ask(link, step("a", 1)).kind == m.GRADIENT


def test_a_client_that_connects_anew_takes_the_place_of_its_old_link(
    server: StreamServer, join: Join
) -> None:
    old, new = join(server, "a"), join(server, "a")
    with pytest.raises(ClientLost, match="connected anew"):
        old.send(step("a", 1))
    assert ask(new, step("a", 1)).seq == 1


def test_a_refusal_by_the_server_reaches_the_client_and_spares_others(
    start: Start, connect: Connect, join: Join
) -> None:
    def admit(greeting: Frame, grantee: str) -> dict[str, object]:
        if greeting.client == "b":
            raise FedloraError("the client's weights are 12ab, the server's are 34cd")
        return {"bug": object()} if greeting.client == "c" else {}

    server = start(admit=admit)
    stream = connect(server)
    link = join(server, "a", echo, stream)
    for name, reason in (("b", "12ab, the server's are 34cd"), ("c", "failed to admit")):
        greeting = hello(name, server.tokens.grant(name, 60.0))
        error = stream.attach(name, echo, greeting).exception(10.0)
        assert isinstance(error, ClientLost)
        assert reason in str(error)
    assert ask(link, step("a", 1)).seq == 1
    assert server.accept(0.0) is None


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (FedloraError("row 17 reads: my secret"), "failed"),
        (ProtocolError("after my secret no batch was open"), "protocol"),
        (ClientLost("my secret is out of reach"), "failed"),
        (RuntimeError("row 17 reads: my secret"), "failed"),
    ],
)
def test_a_handler_that_fails_leaves_with_a_kind_of_reason_and_no_word_of_its_own(
    server: StreamServer, connect: Connect, failure: Exception, kind: str
) -> None:
    def handler(frame: Frame) -> Frame:
        if frame.kind == m.STEP:
            raise failure
        return echo(frame)

    session = connect(server).attach("a", handler, hello("a", server.tokens.grant("a", 60.0)))
    link = server.accept(10.0)
    assert link is not None
    link.receive(10.0)
    reply = ask(link, step("a", 1))
    assert (reply.kind, reply.seq) == (m.LEAVE, 1)
    assert reply.fields == {"reason": kind}
    assert session.exception(10.0) is failure


def test_a_detached_client_leaves_when_it_is_asked(
    server: StreamServer, connect: Connect, join: Join
) -> None:
    stream = connect(server)
    gone, here = (join(server, name, echo, stream) for name in ("a", "b"))
    stream.detach("a")
    assert ask(gone, step("a", 1)).kind == m.LEAVE
    assert ask(here, step("b", 1)).kind == m.GRADIENT


def test_a_late_reply_is_not_taken_for_the_reply_to_the_next_request(
    server: StreamServer, join: Join
) -> None:
    gate = threading.Event()

    def handler(frame: Frame) -> Frame:
        if frame.seq == 1:
            gate.wait(10.0)
        return echo(frame)

    link = join(server, "a", handler)
    link.send(step("a", 1))
    with pytest.raises(ClientLost, match=r"no reply in 0\.05 s"):
        link.receive(0.05)
    link.send(step("a", 2))
    gate.set()
    assert link.receive(10.0).seq == 2


def test_a_client_that_leaves_requests_unanswered_is_given_up(start: Start, join: Join) -> None:
    gate = threading.Event()

    def handler(frame: Frame) -> Frame:
        if frame.kind == m.STEP:
            gate.wait(10.0)
        return echo(frame)

    link = join(start(queue_frames=3), "a", handler)
    for seq in (1, 2, 3):
        link.send(step("a", seq))
    with pytest.raises(ClientLost, match="left 3 requests unanswered"):
        link.send(step("a", 4))
    gate.set()


def test_a_closed_link_tells_the_client_why(server: StreamServer, connect: Connect) -> None:
    session = connect(server).attach("a", echo, hello("a", server.tokens.grant("a", 60.0)))
    link = server.accept(10.0)
    assert link is not None
    link.close("missed 3 steps")
    with pytest.raises(ClientLost, match="missed 3 steps"):
        session.result(10.0)
    with pytest.raises(ClientLost, match="missed 3 steps"):
        link.receive(10.0)


def test_a_reply_that_came_before_the_stream_ended_is_still_received(
    server: StreamServer, connect: Connect
) -> None:
    stream = connect(server)
    session = stream.attach("a", echo, hello("a", server.tokens.grant("a", 60.0)))
    link = server.accept(10.0)
    assert link is not None
    link.receive(10.0)
    link.send(Frame(m.END, "a", 1))
    session.result(10.0)
    stream.close()
    assert link.receive(10.0).kind == m.RESULT
    with pytest.raises(ClientLost):
        link.receive(10.0)


def test_waiting_engines_wake_at_once_when_a_stream_ends(
    server: StreamServer, connect: Connect, join: Join
) -> None:
    stream = connect(server)
    gate = threading.Event()

    def handler(frame: Frame) -> Frame:
        if frame.kind == m.STEP:
            gate.wait(20.0)
        return echo(frame)

    link = join(server, "a", handler, stream)
    link.send(step("a", 1))
    threading.Timer(0.2, stream.close).start()
    began = time.monotonic()
    with pytest.raises(ClientLost, match="closed its stream"):
        link.receive(20.0)
    assert time.monotonic() - began < patient(10.0)
    gate.set()


def test_serve_returns_when_no_handler_runs_and_leaves_no_request_to_one(
    server: StreamServer, connect: Connect
) -> None:
    entered, gate, steps = threading.Event(), threading.Event(), []

    def handler(frame: Frame) -> Frame:
        if frame.kind == m.STEP:
            steps.append(frame.seq)
            entered.set()
            assert gate.wait(20.0)
        return echo(frame)

    ended: list[BaseException] = []

    def serve() -> None:
        try:
            connect(server).serve({"a": handler}, [hello("a", server.tokens.grant("a", 60.0))])
        except ClientLost as error:
            ended.append(error)

    session = in_thread(serve)
    link = server.accept(10.0)
    assert link is not None
    link.receive(10.0)
    link.send(step("a", 1))
    assert entered.wait(10.0)
    link.send(step("a", 2))
    link.close("it was late")  # the request comes before it, on one stream
    session.join(1.0)
    assert session.is_alive()
    gate.set()
    session.join(10.0)
    assert not session.is_alive()
    assert "it was late" in str(ended[0])
    assert steps == [1]


def test_a_request_over_the_limit_or_for_another_client_is_not_sent(
    server: StreamServer, join: Join
) -> None:
    link = join(server, "a")
    with pytest.raises(FedloraError, match=r"raise link\.max_frame_mib"):
        link.send(step("a", 1, 1 << 20))
    with pytest.raises(FedloraError, match="'b' is sent to 'a'"):
        link.send(step("b", 1))
    assert ask(link, step("a", 1)).seq == 1


def test_a_port_that_is_taken_is_an_error_that_names_it(server: StreamServer) -> None:
    with pytest.raises(FedloraError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        StreamServer(
            "127.0.0.1",
            server.port,
            identity=create_identity(),
            max_frame_bytes=1,
            admit=lambda h, g: {},
            tokens=TokenStore(),
        )


def test_a_client_pins_the_certificate_of_its_run(server: StreamServer) -> None:
    other = create_identity().certificate_pem
    token = server.tokens.grant("a", 60.0)
    stream = StreamClient(f"localhost:{server.port}", other, max_frame_bytes=1 << 20)
    with pytest.raises(ClientLost, match="does not hold the certificate"):
        stream.serve({"a": echo}, [hello("a", token)])
    assert server.tokens.check(token) == "a"


def test_a_server_that_is_not_there_is_named(server: StreamServer) -> None:
    server.stop()
    address = f"127.0.0.1:{server.port}"
    stream = StreamClient(address, server.certificate_pem, max_frame_bytes=1024, give_up_s=0.3)
    with pytest.raises(ClientLost, match=rf"no connection to {address}.*given up after 0\.3 s"):
        stream.serve({"a": echo}, [hello("a", "x.y")])


def test_stop_ends_clients_links_and_waiting_threads(
    server: StreamServer, connect: Connect
) -> None:
    session = connect(server).attach("a", echo, hello("a", server.tokens.grant("a", 60.0)))
    link = server.accept(10.0)
    assert link is not None
    link.receive(10.0)
    refusals: list[str] = []

    def wait() -> None:
        try:
            server.accept(20.0)
        except FedloraError as error:
            refusals.append(str(error))

    waiting = [in_thread(wait) for _ in range(2)]
    began = time.monotonic()
    server.stop()
    server.stop()
    for thread in waiting:
        thread.join(10.0)
    assert time.monotonic() - began < patient(10.0)
    assert len(refusals) == 2
    assert "was stopped" in refusals[0]
    with pytest.raises(ClientLost, match="the server ended the stream"):
        session.result(10.0)
    for use in (lambda: link.send(step("a", 1)), lambda: link.receive(1.0)):
        with pytest.raises(ClientLost):
            use()


def test_a_silent_stream_does_not_hold_up_stop(start: Start, join: Join) -> None:
    gate = threading.Event()

    def handler(frame: Frame) -> Frame:
        if frame.kind == m.STEP:
            gate.wait(20.0)
        return echo(frame)

    server = start()
    link = join(server, "a", handler)
    link.send(step("a", 1))
    began = time.monotonic()
    server.stop(grace_s=0.5)
    assert time.monotonic() - began < patient(8.0)
    gate.set()


def test_stop_raises_nothing_where_the_loop_stood_still_and_ends_all_when_it_goes_on(
    server: StreamServer, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = join(server, "a")
    monkeypatch.setattr(stream_server, "_STOP_S", 0.1)
    go_on = threading.Event()
    server._loop.call_soon_threadsafe(go_on.wait, 30.0)
    server.stop(grace_s=0.1)
    assert not link.lost
    go_on.set()
    deadline = time.monotonic() + patient(30.0)
    while not link.lost and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(ClientLost, match="the server stopped"):
        ask(link, step("a", 1), 30.0)


def test_a_client_that_the_server_has_forgotten_leaves_after_its_limit(
    server: StreamServer, connect: Connect
) -> None:
    greeting = hello("a", server.tokens.grant("a", 60.0))
    stream, errors = connect(server), []

    def serve() -> None:
        try:
            stream.serve({"a": echo}, [greeting], idle_s=2.0)
        except ClientLost as error:
            errors.append(error)

    session = in_thread(serve)
    link = server.accept(10.0)
    assert link is not None
    link.receive(10.0)
    for seq in range(1, 8):  # asked now and then, it stays
        time.sleep(0.3)
        assert ask(link, step("a", seq)).kind == m.GRADIENT
    session.join(20.0)
    assert "client a heard no request of the server for 2 s" in str(errors[0])
    with pytest.raises(ClientLost):
        ask(link, step("a", 8))
