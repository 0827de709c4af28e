"""Whatever a hostile peer sends, other clients' sessions and the server's memory are untouched.

The ``bystander`` fixture exchanges frames over a stream of its own before and after each test.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import grpc
import psutil
import pytest
import safetensors.torch
import torch
from support.link_peers import (
    BAD_HEADER,
    BAD_PAYLOAD,
    LIMIT,
    HostilePeer,
    ask,
    echo,
    header,
    hello,
    raw,
)

from fedlora.errors import ClientLost, FedloraError, ProtocolError
from fedlora.link import (
    Fp32Codec,
    Frame,
    closed_words,
    decode_frame,
    encode_frame,
    messages as m,
    unpack,
)
from fedlora.link.stream import CLOSED, REFUSED, TokenStore
from fedlora.link.stream.client.client import StreamClient
from fedlora.link.stream.client.sessions import ClientSessions
from fedlora.link.stream.server.connection import MAX_REFUSALS
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.listener import StreamServer
from fedlora.link.stream.server.places import BURST, MOST_OF_ONE, RATE, StreamPlaces
from fedlora.link.stream.tokens import MOST_CLAIMS

pytestmark = pytest.mark.usefixtures("bystander")


def admitted(server: StreamServer, hostile: HostilePeer, client: str = "mallory") -> StreamLink:
    """Open a stream and bring a client through the handshake."""
    hostile.open(server.tokens.grant(client, 60.0))
    hostile.greet(client, server.tokens.grant(client, 60.0))
    link = server.accept(10.0)
    assert link is not None
    assert decode_frame(hostile.read(), LIMIT).kind == m.WELCOME
    hostile.send(encode_frame(Frame(m.READY, client)))
    assert link.receive(10.0).kind == m.READY
    return link


def test_strangers_are_refused_before_anything_of_theirs_is_read(
    server: StreamServer, hostile: HostilePeer
) -> None:
    used = server.tokens.grant("a", 60.0)
    server.tokens.redeem(used)
    for token in ("", "guess", "0123456789abcdef.guess", used):
        hostile.open(token)
        code, details = hostile.ending()
        assert code == grpc.StatusCode.UNAUTHENTICATED
        assert "token" in details


def test_a_stream_of_an_expired_token_is_refused(
    start: Callable[..., StreamServer], server: StreamServer
) -> None:
    now = 0.0
    other = start(tokens=TokenStore(clock=lambda: now))
    token = other.tokens.grant("a", 5.0)
    now = 6.0
    peer = HostilePeer(other.port, other.certificate_pem)
    peer.open(token)
    assert peer.ending() == (
        grpc.StatusCode.UNAUTHENTICATED,
        "the token has expired; let the server grant a new one",
    )
    peer.close()


def test_a_used_or_wrong_token_in_a_hello_is_refused_with_a_sentence(
    server: StreamServer, hostile: HostilePeer
) -> None:
    token = server.tokens.grant("mallory", 60.0)
    hostile.open(token)
    hostile.greet("mallory", token)
    assert decode_frame(hostile.read(), LIMIT).kind == m.WELCOME
    for again, reason in ((token, "used before"), ("guess", "unknown")):
        hostile.greet("eve", again)
        reply = decode_frame(hostile.read(), LIMIT)
        assert (reply.kind, reply.client) == (REFUSED, "eve")
        assert reason in reply.fields["reason"]


def test_guessing_tokens_ends_the_stream(server: StreamServer, hostile: HostilePeer) -> None:
    hostile.open(server.tokens.grant("mallory", 60.0))
    for i in range(MAX_REFUSALS):
        hostile.greet(f"m{i}", "guess")
    hostile.ending()
    assert server.accept(0.0) is None


def test_a_stream_on_which_nobody_says_hello_is_ended(
    start: Callable[..., StreamServer],
) -> None:
    server = start(hello_timeout_s=0.3)
    peer = HostilePeer(server.port, server.certificate_pem)
    peer.open(server.tokens.grant("a", 60.0))
    code, details = peer.ending()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "no client was admitted" in details
    peer.close()


def test_streams_beyond_the_limit_are_told_to_dial_again(
    start: Callable[..., StreamServer],
) -> None:
    server = start(max_streams=2)
    peers = [HostilePeer(server.port, server.certificate_pem) for _ in range(3)]
    links = [admitted(server, peer, f"c{i}") for i, peer in enumerate(peers[:2])]
    peers[2].open(server.tokens.grant("c2", 60.0))
    assert peers[2].ending()[0] == grpc.StatusCode.UNAVAILABLE
    assert [link.lost for link in links] == ["", ""]
    for peer in peers:
        peer.close()


def test_hellos_without_end_on_one_token_end_the_stream_and_leave_one_link(
    server: StreamServer, hostile: HostilePeer
) -> None:
    token = server.tokens.grant("mallory", 60.0)
    for _ in range(3):
        hostile.open(token)
        hostile.greet("mallory", token)
        assert decode_frame(hostile.read(), LIMIT).kind == m.WELCOME
        for _ in range(1000):
            hostile.greet("mallory", token)
        assert hostile.ending()[0] == grpc.StatusCode.INVALID_ARGUMENT
    link = server.accept(10.0)
    assert link is not None
    assert link.lost
    assert server.accept(0.0) is None


def test_a_token_that_leads_nowhere_is_void_after_a_while(
    start: Callable[..., StreamServer],
) -> None:
    tokens = TokenStore()
    token = tokens.grant("mallory", 60.0)
    for _ in range(MOST_CLAIMS):
        tokens.claim(token, "mallory")
    with pytest.raises(FedloraError, match="led to no session"):
        tokens.claim(token, "mallory")


def test_refused_hellos_end_a_stream_whose_peer_does_not_read(
    server: StreamServer, hostile: HostilePeer
) -> None:
    hostile.open(server.tokens.grant("mallory", 60.0))
    before = psutil.Process().memory_info().rss
    for i in range(20_000):
        hostile.greet(f"m{i}", "guess" + "x" * 1000)
    hostile.ending()
    assert psutil.Process().memory_info().rss - before < 60 << 20


def test_one_client_cannot_take_the_places_of_others(start: Callable[..., StreamServer]) -> None:
    server = start(max_streams=8)
    honest = HostilePeer(server.port, server.certificate_pem)
    link = admitted(server, honest, "honest")
    token = server.tokens.grant("mallory", 60.0)
    peers = [HostilePeer(server.port, server.certificate_pem) for _ in range(20)]
    for peer in peers:
        peer.open(token)
        peer.call.initial_metadata()  # the server has it
    for peer in peers[:-MOST_OF_ONE]:
        assert peer.ending()[0] == grpc.StatusCode.UNAVAILABLE
    late = HostilePeer(server.port, server.certificate_pem)
    assert admitted(server, late, "late").lost == ""
    assert link.lost == ""
    for peer in (*peers, honest, late):
        peer.close()


def test_a_client_that_opens_streams_all_the_time_has_to_wait() -> None:
    now = [0.0]
    places = StreamPlaces(1024, clock=lambda: now[0])
    opened = [places.take(cast(Any, Ended()), "mallory") for _ in range(BURST + 5)]
    assert opened == [True] * BURST + [False] * 5
    assert places.take(cast(Any, Ended()), "honest")
    now[0] = 1.0 / RATE
    assert places.take(cast(Any, Ended()), "mallory")


class Ended:
    """A stream that makes place."""

    def __init__(self) -> None:
        self.links: dict[str, object] = {}

    def abort(self, reason: str) -> None:
        self.reason = reason


def test_an_honest_client_waits_until_a_crowded_server_has_a_place(
    start: Callable[..., StreamServer], connect: Callable[..., StreamClient]
) -> None:
    server = start(max_streams=2)
    first, second = (HostilePeer(server.port, server.certificate_pem) for _ in range(2))
    admitted(server, first, "a")
    admitted(server, second, "b")
    stream = connect(server, give_up_s=60.0)
    over = stream.attach("c", echo, hello("c", server.tokens.grant("c", 60.0)))
    time.sleep(0.3)
    assert not over.done()
    first.close()
    link = server.accept(30.0)
    assert link is not None
    assert link.client == "c"
    second.close()


def test_clients_beyond_the_limit_of_a_stream_end_it(start: Callable[..., StreamServer]) -> None:
    server = start(max_clients=2)
    peer = HostilePeer(server.port, server.certificate_pem)
    peer.open(server.tokens.grant("a", 60.0))
    for client in ("a", "b", "c"):
        peer.greet(client, server.tokens.grant(client, 60.0))
    assert "carries 2 clients already" in peer.ending()[1]
    peer.close()


@pytest.mark.parametrize("data", BAD_HEADER.values(), ids=BAD_HEADER)
def test_a_frame_that_cannot_be_read_ends_its_stream_with_a_logged_reason(
    server: StreamServer, hostile: HostilePeer, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    link = admitted(server, hostile)
    with caplog.at_level(logging.WARNING, "fedlora.link"):
        hostile.send(data)
        code, _ = hostile.ending()
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    with pytest.raises(ClientLost):
        link.receive(10.0)
    assert any("lost: mallory" in record.message for record in caplog.records)


@pytest.mark.parametrize("payload", BAD_PAYLOAD.values(), ids=BAD_PAYLOAD)
def test_a_payload_that_cannot_be_read_drops_its_client_with_a_logged_reason(
    server: StreamServer, hostile: HostilePeer, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    link = admitted(server, hostile)
    link.send(Frame(m.STEP, "mallory", 5))
    hostile.read()
    hostile.send(raw(header(client="mallory", seq=5), payload))
    with caplog.at_level(logging.WARNING, "fedlora.link"), pytest.raises(ProtocolError):
        link.receive(10.0)
    assert decode_frame(hostile.read(), LIMIT).kind == CLOSED
    with pytest.raises(ClientLost, match="safetensors"):
        link.send(Frame(m.STEP, "mallory", 6))
    assert any("client mallory is dropped" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 4, dtype=torch.float64),
        torch.zeros(4, 3),
        torch.zeros(12),
        torch.zeros(0, 4),
        torch.full((3, 4), float("nan")),
        torch.full((3, 4), float("inf")),
    ],
    ids=["dtype", "transposed", "flat", "empty", "NaN", "infinite"],
)
def test_tensors_of_another_kind_than_announced_are_refused_by_the_codec(
    server: StreamServer, hostile: HostilePeer, tensor: torch.Tensor
) -> None:
    link = admitted(server, hostile)
    link.send(Frame(m.STEP, "mallory", 5))
    hostile.read()
    hostile.send(encode_frame(Frame(m.GRADIENT, "mallory", 5, tensors={"gradient": tensor})))
    with pytest.raises(ProtocolError):
        unpack(link.receive(10.0).tensors, "gradient", Fp32Codec(), (3, 4))


def test_an_unasked_frame_drops_its_client_and_a_second_one_the_stream(
    server: StreamServer, hostile: HostilePeer
) -> None:
    link = admitted(server, hostile)
    hostile.send(encode_frame(Frame(m.GRADIENT, "mallory", 1)))
    assert decode_frame(hostile.read(), LIMIT).kind == CLOSED
    with pytest.raises(ClientLost, match="answers no request"):
        link.receive(10.0)
    hostile.send(encode_frame(Frame(m.GRADIENT, "mallory", 1)))
    assert "went on after its session had ended" in hostile.ending()[1]


@pytest.mark.parametrize("seq", [0, 4, 6, 10**30])
def test_a_replayed_or_skipped_seq_drops_its_client(
    server: StreamServer, hostile: HostilePeer, seq: int
) -> None:
    link = admitted(server, hostile)
    link.send(Frame(m.STEP, "mallory", 5))
    hostile.read()
    hostile.send(encode_frame(Frame(m.GRADIENT, "mallory", seq)))
    with pytest.raises(ClientLost, match=f"frame {seq} answers no request"):
        link.receive(10.0)


def test_a_second_reply_to_one_request_is_not_seen_by_the_engine(
    server: StreamServer, hostile: HostilePeer
) -> None:
    link = admitted(server, hostile)
    link.send(Frame(m.STEP, "mallory", 5))
    for n in (1, 2):
        hostile.send(encode_frame(Frame(m.GRADIENT, "mallory", 5, {"n": n})))
    assert link.receive(10.0).fields == {"n": 1}
    with pytest.raises(ClientLost):
        link.receive(10.0)


def test_another_clients_identifier_does_not_reach_its_session(
    server: StreamServer, hostile: HostilePeer, bystander: StreamLink
) -> None:
    admitted(server, hostile)
    hostile.send(encode_frame(Frame(m.GRADIENT, bystander.client, 1)))
    assert "'bystander' sent 'gradient' before hello" in hostile.ending()[1]


@pytest.mark.parametrize("client", ["", "x" * 129, "a\nb", "\ud800", "a\x1b[2J"])
def test_identifiers_that_would_spoil_a_log_are_refused(
    server: StreamServer, hostile: HostilePeer, client: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = server.tokens.grant("mallory", 60.0)
    hostile.open(token)
    hostile.greet(client, token)
    assert hostile.ending()[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert all(r.message.isprintable() and len(r.message) < 500 for r in caplog.records)
    assert server.tokens.check(token) == "mallory"


def test_hellos_that_are_too_large_or_doubled_end_the_stream(
    start: Callable[..., StreamServer],
) -> None:
    gate = threading.Event()

    def admit(greeting: Frame, grantee: str) -> dict[str, object]:
        gate.wait(10.0)
        return {}

    server = start(admit=admit)
    peer = HostilePeer(server.port, server.certificate_pem)
    token = server.tokens.grant("mallory", 60.0)
    peer.open(token)
    peer.send(encode_frame(Frame(m.HELLO, "mallory", fields={"token": token, "pad": "x" * 70_000})))
    assert "exceeds the limit" in peer.ending()[1]
    peer.open(token)
    peer.greet("mallory", token)
    peer.greet("mallory", token)
    assert "said hello twice" in peer.ending()[1]
    gate.set()
    peer.close()


def test_a_message_over_the_limit_or_compressed_is_refused_unread(
    server: StreamServer, hostile: HostilePeer
) -> None:
    link = admitted(server, hostile)
    hostile.send(bytes(LIMIT + 1))
    assert hostile.ending()[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(ClientLost):
        link.receive(10.0)
    hostile.open(server.tokens.grant("mallory", 60.0), compression=grpc.Compression.Gzip)
    hostile.send(bytes(200 << 20))
    assert hostile.ending()[0] == grpc.StatusCode.UNIMPLEMENTED


def test_a_thousand_malformed_frames_change_nothing(
    server: StreamServer, bystander: StreamLink
) -> None:
    generator = random.Random(5)
    good = encode_frame(Frame(m.GRADIENT, "mallory", 5, {"loss": 0.5}, {"z": torch.ones(8, 8)}))
    peer = HostilePeer(server.port, server.certificate_pem)
    for n in range(1000):  # of many grantees: one alone may not open streams so fast
        peer.open(server.tokens.grant(f"mallory{n % 50}", 60.0))
        kind = n % 4
        if kind == 0:
            data = good[: generator.randrange(len(good))]
        elif kind == 1:
            data = generator.randbytes(generator.randrange(200))
        else:
            changed = bytearray(good)
            for _ in range(1 + n % 3):
                changed[generator.randrange(len(good))] ^= 1 << generator.randrange(8)
            data = bytes(changed)
        peer.send(data)
        assert peer.ending()[0] == grpc.StatusCode.INVALID_ARGUMENT
        if n % 100 == 0:
            assert ask(bystander, Frame(m.STEP, "bystander", n + 1)).seq == n + 1
    peer.close()


def test_memory_stays_bounded_under_floods(server: StreamServer, hostile: HostilePeer) -> None:
    def flood(streams: int) -> None:
        payload = safetensors.torch.save({"z": torch.zeros(LIMIT // 4 - 1000)})
        for n in range(streams):
            link = admitted(server, hostile)
            link.send(Frame(m.STEP, "mallory", 5))
            for seq in range(5, 15):  # the first is asked for, the others are not
                hostile.send(raw(header(client="mallory", seq=seq), payload))
            if n % 2:
                with contextlib.suppress(ClientLost):
                    link.receive(10.0)
            assert hostile.ending()[0] == grpc.StatusCode.INVALID_ARGUMENT

    process = psutil.Process()
    flood(5)
    gc.collect()
    before = process.memory_info().rss
    flood(30)  # 300 MiB
    gc.collect()
    time.sleep(0.1)
    assert process.memory_info().rss - before < 60 << 20


def test_a_peer_that_does_not_read_holds_a_bounded_queue(
    server: StreamServer, hostile: HostilePeer
) -> None:
    link = admitted(server, hostile)
    z = {"z": torch.zeros(LIMIT // 4 - 1000)}
    for seq in range(1, 5):
        link.send(Frame(m.STEP, "mallory", seq, tensors=z))
    with pytest.raises(ClientLost, match="left 4 requests unanswered"):
        link.send(Frame(m.STEP, "mallory", 5, tensors=z))


def test_a_host_keeps_its_other_clients_when_one_is_dropped(
    server: StreamServer, hostile: HostilePeer
) -> None:
    first = admitted(server, hostile)
    token = server.tokens.grant("other", 60.0)
    hostile.send(encode_frame(hello("other", token)))
    second = server.accept(10.0)
    assert second is not None
    assert decode_frame(hostile.read(), LIMIT).kind == m.WELCOME
    hostile.send(encode_frame(Frame(m.READY, "other")))
    second.receive(10.0)
    hostile.send(encode_frame(Frame(m.GRADIENT, "mallory", 9)))
    with pytest.raises(ClientLost):
        first.receive(10.0)
    second.send(Frame(m.STEP, "other", 1))
    hostile.send(encode_frame(Frame(m.GRADIENT, "other", 1)))
    assert second.receive(10.0).kind == m.GRADIENT


def test_a_server_that_asks_more_than_can_be_answered_ends_the_session() -> None:
    """What waits for its answer takes so many frames of the largest size, and no more."""
    told, free, most = list[bytes](), threading.Event(), 4096
    sessions = ClientSessions(threading.RLock(), told.append, most, 1, closed_words)

    def slow(request: Frame) -> Frame:
        free.wait(30)
        return Frame(m.READY, request.client, request.seq)

    session = sessions.begin("0", slow, Frame(m.HELLO, "0", 0, {"token": "t"}))
    pad = {"x": torch.zeros(3000, dtype=torch.uint8)}
    frames = [Frame(m.WELCOME, "0", 0, {"resume": "s"})]
    frames += [Frame(m.HEAD, "0", seq, tensors=pad) for seq in range(1, 40)]
    taken = [sessions.take(frame, encode_frame(frame)) for frame in frames]
    free.set()
    assert 16 < sum(taken) < 32
    assert not any(taken[sum(taken) :])
    assert getattr(session.over.exception(1), "kind", "") == "protocol"
    assert decode_frame(told[0], most).fields == {"reason": "protocol"}
    sessions.stop(wait=True)
