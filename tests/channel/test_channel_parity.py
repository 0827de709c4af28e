"""The published constants of AirLLM's setting: OPT-1.3B, 100 MHz, 1 s, 32 bits a parameter."""

from __future__ import annotations

import pytest

from fedlora.channel.channel import Channel
from fedlora.channel.delivery import communication_cost, deliver
from fedlora.channel.models.awgn import AwgnChannel
from fedlora.config import ChannelConfig

HIDDEN, FEED_FORWARD, LAYERS = 2048, 8192, 24
PROJECTIONS = [(HIDDEN, HIDDEN)] * 4 + [(HIDDEN, FEED_FORWARD), (FEED_FORWARD, HIDDEN)]
PARAMETERS_PER_RANK = LAYERS * sum(d_in + d_out + 1 for d_in, d_out in PROJECTIONS)
BITS, DEADLINE_S = 32, 1.0

# SNR in dB: capacity in Mbit/s, largest uniform rank within the deadline, cost of rank 8.
PUBLISHED = {
    -5.0: (39.64, 1.40, 5.715),
    0.0: (100.00, 3.53, 2.265),
    5.0: (205.74, 7.27, 1.101),
    10.0: (345.94, 12.22, 0.655),
    15.0: (502.78, 17.76, 0.451),
}


def channel(snr_db: float) -> Channel:
    config = ChannelConfig(snr_db=(snr_db,), bandwidth_hz=(100e6,), deadline_s=DEADLINE_S)
    return Channel(config, AwgnChannel(config, 0), 0)


def test_a_unit_of_uniform_rank_has_884880_parameters() -> None:
    assert PARAMETERS_PER_RANK == 884_880


@pytest.mark.parametrize("snr_db", PUBLISHED)
def test_capacity_rank_and_cost_are_the_published_ones(snr_db: float) -> None:
    capacity_mbps, largest_rank, cost_of_8 = PUBLISHED[snr_db]
    rate_bps = channel(snr_db).truth(0, 0).down_rate_bps
    assert rate_bps / 1e6 == pytest.approx(capacity_mbps, abs=0.005)
    rank_bits = BITS * PARAMETERS_PER_RANK
    assert rate_bps * DEADLINE_S / rank_bits == pytest.approx(largest_rank, abs=0.005)
    cost = communication_cost(8 * rank_bits, rate_bps, DEADLINE_S)
    assert cost == pytest.approx(cost_of_8, abs=0.0005)


@pytest.mark.parametrize("snr_db", PUBLISHED)
def test_an_adapter_is_late_exactly_where_its_cost_exceeds_one(snr_db: float) -> None:
    air = channel(snr_db)
    rate_bps = air.truth(0, 0).down_rate_bps
    for rank in range(1, 25):
        bits = rank * BITS * PARAMETERS_PER_RANK
        sent = deliver(air, bits, 0, 0, deadline_s=DEADLINE_S)
        cost = communication_cost(bits, rate_bps, DEADLINE_S)
        assert sent.delivered == (cost <= 1)
        assert sent.seconds == pytest.approx(min(cost, 1.0) * DEADLINE_S)
        assert sent.bits_sent == (
            bits if cost <= 1 else pytest.approx(rate_bps * DEADLINE_S, abs=1)
        )
