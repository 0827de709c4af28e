"""A thousand hostile frames and strangers beside a run change no bit of its result."""

from __future__ import annotations

import random

import grpc
import torch
from support.federation import same, scenario
from support.link_peers import MALFORMED, HostilePeer
from support.stream_federation import run_over_stream

from fedlora.link import Frame, encode_frame, messages as m
from fedlora.link.stream.server.listener import StreamServer

PEERS = 1000


def attack(server: StreamServer) -> None:
    """Guess tokens, or open a stream with a good one and send rubbish."""
    chance = random.Random(9)
    good = encode_frame(Frame(m.GRADIENT, "0", 1, {"weight": 3.0}, {"gradient": torch.ones(3, 8)}))
    rubbish = [*MALFORMED.values(), good, good[:-1], good + b"x"]
    peer = HostilePeer(server.port, server.certificate_pem)
    for number in range(PEERS):
        stranger = number % 3 == 0
        peer.open("guess" if stranger else server.tokens.grant(f"mallory{number % 50}", 60.0))
        peer.send(chance.choice(rubbish))
        refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT)
        assert peer.ending()[0] in refused
    peer.close()


def test_a_thousand_hostile_peers_beside_a_run_change_no_bit(tiny, records):
    config = scenario(tiny["gpt2"], records, "train.steps=8")
    assert same(run_over_stream(config, 1, attack), run_over_stream(config, 1))
