"""What a client measures of its link is what its link carries."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import grpc
import pytest
import torch
from support.link_peers import LIMIT, HostilePeer, ask, echo, hello
from support.relay import Relay
from test_link_reconnect import admitted, wait_for

from fedlora.errors import ClientLost
from fedlora.link import Frame, decode_frame, encode_frame, messages as m
from fedlora.link.stream import PROBE
from fedlora.link.stream.client.client import StreamClient
from fedlora.link.stream.link_rate import MOST_BYTES, LinkRate, measure
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.listener import StreamServer


@pytest.mark.parametrize(("up_bps", "down_bps"), [(1e5, 1e6), (1e7, 4e6), (1e9, 1e10)])
def test_the_rate_of_a_link_is_found_from_the_growth_of_time(
    up_bps: float, down_bps: float
) -> None:
    sent = [0, 0]

    def exchange(up: int, down: int) -> float:
        sent[0] += up
        sent[1] += down
        return 0.1 + 8 * up / up_bps + 8 * down / down_bps

    rate = measure(exchange)
    assert rate.up_bps == pytest.approx(up_bps)
    assert rate.down_bps == pytest.approx(down_bps)
    assert rate.round_trip_s == pytest.approx(0.1)
    assert max(sent) <= 2 * MOST_BYTES


def test_a_link_of_10_megabits_with_50_ms_delay_is_measured_within_a_fifth(
    start: Callable[..., StreamServer],
) -> None:
    """The oracle is the time that a frame of a megabyte takes there and back.

    A busy machine makes either slower now and then, so the best of a few tries are compared.
    """
    server = start(max_frame_bytes=4 << 20)
    rates, achieved = [LinkRate(0.0, 0.0, 1.0)], [0.0]
    with Relay(server.port, rate_bps=10e6, delay_s=0.05) as relay:
        address = f"127.0.0.1:{relay.port}"
        with StreamClient(address, server.certificate_pem, max_frame_bytes=4 << 20) as stream:
            stream.attach("a", echo, hello("a", server.tokens.grant("a", 60.0)))
            link = server.accept(20.0)
            assert link is not None
            assert link.receive(20.0).kind == m.READY
            for seq in range(1, 7):
                rates.append(measure(partial(stream.probe, "a")))
                began, before = time.monotonic(), sum(relay.bytes.values())
                ask(link, Frame(m.STEP, "a", seq, {}, {"z": torch.rand(1 << 18)}), 60.0)
                took_s = time.monotonic() - began - min(r.round_trip_s for r in rates)
                achieved.append(8 * (sum(relay.bytes.values()) - before) / took_s)
                found = [max(r.up_bps for r in rates), max(r.down_bps for r in rates)]
                if all(bps == pytest.approx(max(achieved), rel=0.2) for bps in found):
                    break
    assert min(r.round_trip_s for r in rates) == pytest.approx(0.1, abs=0.05)
    assert found == pytest.approx([max(achieved)] * 2, rel=0.2)
    assert max(achieved) == pytest.approx(10e6, rel=0.2)


def test_a_probe_ends_with_its_stream(
    server: StreamServer, connect: Callable[..., StreamClient]
) -> None:
    stream = connect(server)
    with pytest.raises(ClientLost, match="no stream to measure"):
        stream.probe("a", 0, 0)
    stream.attach("a", echo, hello("a", server.tokens.grant("a", 60.0)))
    link = server.accept(10.0)
    assert link is not None
    link.receive(10.0)
    assert stream.probe("a", 1000, 1000) < 10.0
    server.stop()
    with pytest.raises(ClientLost):
        stream.probe("a", 0, 0)


def test_a_probe_that_came_too_late_costs_no_client(start: Callable[..., StreamServer]) -> None:
    server = start(give_up_s=20.0)
    with (
        Relay(server.port) as relay,
        StreamClient(
            f"127.0.0.1:{relay.port}",
            server.certificate_pem,
            max_frame_bytes=LIMIT,
            give_up_s=20.0,
        ) as stream,
    ):
        stream.attach("a", echo, hello("a", server.tokens.grant("a", 60.0)))
        link = server.accept(10.0)
        assert link is not None
        assert link.receive(10.0).kind == m.READY
        relay.stall(True)
        with pytest.raises(ClientLost, match="the server is silent"):
            stream.probe("a", 1000, 1000, limit_s=0.2)
        for _ in range(5):
            with pytest.raises(ClientLost, match="still waits for its last measurement"):
                stream.probe("a", 1000, 1000)
        relay.stall(False)
        relay.reset()
        assert ask(link, Frame(m.STEP, "a", 1), 20.0).kind == m.GRADIENT
        assert stream.probe("a", 1000, 1000) < 10.0


def test_a_client_may_probe_again_as_soon_as_it_has_its_answer(
    server: StreamServer, hostile: HostilePeer
) -> None:
    admitted(server, hostile)
    for number in range(200):
        hostile.send(encode_frame(Frame(PROBE, "a", number, {"size": 100_000})))
        assert decode_frame(hostile.read(), LIMIT).seq == number


@pytest.mark.parametrize("size", [None, -1, True, "9", MOST_BYTES + 1, 10**30])
def test_a_probe_for_too_much_ends_its_stream(
    server: StreamServer, hostile: HostilePeer, bystander: StreamLink, size: object
) -> None:
    admitted(server, hostile)
    hostile.send(encode_frame(Frame(PROBE, "a", 1, {"size": size})))
    code, reason = hostile.ending()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "probe" in reason


def test_probes_do_not_fill_the_servers_queue(
    server: StreamServer, hostile: HostilePeer, bystander: StreamLink
) -> None:
    link, _ = admitted(server, hostile)
    for number in range(100):
        hostile.send(encode_frame(Frame(PROBE, "a", number, {"size": LIMIT // 2})))
    wait_for(lambda: bool(link.lost))  # it reads nothing meanwhile
    assert hostile.ending()[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_a_probe_answers_with_as_many_bytes_as_it_was_asked_for(
    server: StreamServer, hostile: HostilePeer
) -> None:
    admitted(server, hostile)
    hostile.send(encode_frame(Frame(PROBE, "a", 7, {"size": 5000})))
    data = hostile.read()
    assert decode_frame(data, LIMIT).seq == 7
    assert 5000 < len(data) < 5300
