"""``check_channel`` passes what is sound and names what is broken."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from fedlora.channel.check import check_channel
from fedlora.channel.models.awgn import AwgnChannel
from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.models.fading import RayleighChannel
from fedlora.channel.models.log_distance import LogDistanceChannel
from fedlora.channel.models.trace import TraceChannel


def moving(config, seed):
    return LogDistanceChannel(config, seed, mobility="waypoint", correlation="jakes")


def recorded(config, seed):
    return TraceChannel(config, seed, path="package:simulations/traces/hsdpa.log")


@pytest.mark.parametrize("make", [AwgnChannel, RayleighChannel, moving, recorded])
def test_models_that_ship_are_sound(make):
    assert check_channel(make) == []


class Plain(ChannelModel):
    def sample(self, client, block):
        return Link(5.0, 5.0, 1e6)


class Walks(ChannelModel):
    level_db = 0.0

    def sample(self, client, block):
        self.level_db += 1
        return Link(self.level_db, self.level_db, 1e6)


class Chain(ChannelModel):
    """The first value that is asked for decides on all later ones."""

    def sample(self, client, block):
        self.first = getattr(self, "first", float(block % 7))
        return Link(self.first, self.first, 1e6)


class Global(Plain):
    def sample(self, client, block):
        random.random()
        return super().sample(client, block)


class Numpy(Plain):
    def sample(self, client, block):
        np.random.normal()
        return super().sample(client, block)


class Reseeds(Plain):
    def __init__(self, config, seed):
        super().__init__(config, seed)
        torch.manual_seed(seed + 1)


class Late(Plain):
    def sample(self, client, block):
        return [Link(5.0, 5.0, 1e6)][block // 100]


class Exits(Plain):
    def sample(self, client, block):
        raise SystemExit(0)


def of(*values):
    return type("Of", (Plain,), {"sample": lambda self, client, block: Link(*values)})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Walks, "other links when asked again"),
        (Chain, "in another order"),
        (Global, "random's global generator"),
        (Numpy, "numpy.random's global generator"),
        (Reseeds, "torch's global generator"),
        (Late, "sample raised IndexError"),
        (Exits, "sample raised SystemExit"),
        (of(math.nan, 1.0, 1e6), "gave what no link has for client 0 in block 0"),
        (of(5.0, -2e3, 1e6), "down_snr_db is -2000"),
        (of(5.0, 5.0, 0.0), "bandwidth_hz is 0"),
        (of(np.float32(5), np.float32(5), 1e6), "a float32"),
        (of(None, None, 1e6), "neither SNR nor rate"),
        (of(None, None, 1e6, 1e3), "a rate of one direction alone"),
        (of(None, None, 1e6, 1e3, math.inf), "down_rate_bps is inf"),
        (lambda config, seed: 7, "7 is none; give a class"),
        (lambda config: 7, "cannot be made (TypeError"),
        (
            type("Floats", (Plain,), {"sample": lambda self, client, block: 5.0}),
            "sample returned 5.0",
        ),
    ],
)
def test_a_broken_model_is_named_with_what_was_expected(make, words):
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    findings = check_channel(make)
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    assert findings and words in findings[0], findings
    assert "expected" in findings[0] or "give a class" in findings[0]
    assert not any("\n" in text for text in findings)
