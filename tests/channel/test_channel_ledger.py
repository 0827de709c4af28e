"""Air time, energy and deliveries against sums and integrals done by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from fedlora.channel import AirLedger, build_channel
from fedlora.channel.channel import Channel
from fedlora.channel.delivery import Delivery, deliver
from fedlora.channel.models.awgn import AwgnChannel
from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.models.fading import RayleighChannel
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError

ZERO_DB = ChannelConfig(snr_db=(0.0,), deadline_s=2.0, up_power_w=0.5, down_power_w=4.0)


def flat(config: ChannelConfig = ZERO_DB) -> Channel:
    """At 0 dB and 1 MHz each client carries 1 Mbit/s."""
    return Channel(config, AwgnChannel(config, 0), 0)


def fading(**settings: float) -> Channel:
    config = ChannelConfig(round_s=1.0, coherence_s=0.1, **settings)
    return Channel(config, RayleighChannel(config, 3), 3)


def test_a_payload_takes_its_bits_over_the_rate() -> None:
    ledger = AirLedger(flat())
    ledger.start_round(0)
    assert ledger.book(0, "up", "activation", 500_000, 62_600) == pytest.approx(0.5)
    assert ledger.book(0, "down", "representation", 250_000, 31_300) == pytest.approx(0.25)
    totals = ledger.totals()
    assert totals["client_seconds"] == totals["air_seconds"] == pytest.approx(0.75)
    assert totals["energy_joules"] == pytest.approx(0.5 * 0.5 + 0.25 * 4.0)
    assert totals["wire_bytes"] == {"up": 62_600, "down": 31_300}
    assert totals["bits"] == {
        "up": {"activation": 500_000, "gradient": 0, "head": 0, "control": 0},
        "down": {"representation": 250_000, "adapter": 0, "head": 0, "control": 0},
    }


def test_air_time_is_the_busiest_clients_of_each_round() -> None:
    ledger = AirLedger(flat())
    for round, seconds in enumerate([{0: 1.0, 1: 3.0}, {0: 2.0, 1: 1.5}]):
        ledger.start_round(round)
        for client, duration in seconds.items():
            for _ in range(4):
                ledger.book(client, "up", "gradient", round_bits(duration / 4), 0)
    assert ledger.totals()["air_seconds"] == pytest.approx(3.0 + 2.0)
    assert ledger.totals()["client_seconds"] == pytest.approx(7.5)
    assert ledger.totals(1)["air_seconds"] == pytest.approx(2.0)
    assert ledger.totals(1)["bits"]["up"]["gradient"] == round_bits(3.5)
    assert ledger.totals(5)["air_seconds"] == 0


def round_bits(seconds: float) -> int:
    return round(seconds * 1e6)


def test_evaluation_and_baseline_are_counted_apart_and_take_no_air_time() -> None:
    ledger = AirLedger(flat())
    assert ledger.book(0, "up", "baseline", 7, 9) == 0.0  # before any round
    ledger.start_round(0)
    ledger.book(0, "down", "evaluation", 10**9, 10**9)
    totals = ledger.totals()
    assert totals["air_seconds"] == totals["energy_joules"] == totals["wire_bytes"]["down"] == 0
    assert ledger.rows() == []
    assert ledger.outside_bits() == {
        "evaluation": {"up": 0, "down": 10**9},
        "baseline": {"up": 7, "down": 0},
        "resume": {"up": 0, "down": 0},
    }


def test_late_adapters_are_cut_off_and_counted() -> None:
    ledger = AirLedger(flat())
    ledger.start_round(0)
    ledger.book(0, "up", "activation", 5_000_000, 0)  # what came before does not use up the budget
    assert ledger.deliver(0, 2_000_000, 250_400).delivered
    late = ledger.deliver(1, 8_000_000, 1_000_000)
    assert (late.delivered, late.seconds, late.bits_sent) == (False, 2.0, 2_000_000)
    totals = ledger.totals()
    assert totals["late_deliveries"] == 1
    assert totals["bits"]["down"]["adapter"] == 4_000_000
    assert totals["wire_bytes"]["down"] == 250_400 + 250_000
    assert totals["energy_joules"] == pytest.approx(5 * 0.5 + 4 * 4.0)
    assert ledger.row(0, 0).delivered is True
    assert ledger.row(0, 1).delivered is False
    assert ledger.row(0, 2) is None


def test_a_scheduled_bandwidth_changes_rate_and_row() -> None:
    ledger = AirLedger(flat())
    ledger.start_round(0, {0: 4e6})
    seconds = ledger.book(0, "up", "activation", 1_000_000, 0)
    assert seconds == pytest.approx(1 / (4 * math.log2(1.25)))
    assert ledger.book(1, "up", "activation", 1_000_000, 0) == pytest.approx(1.0)
    assert ledger.row(0, 0).bandwidth_hz == 4e6
    assert ledger.row(0, 0).down_snr_db == pytest.approx(-10 * math.log10(4))


def test_payloads_of_a_client_follow_one_another_through_the_fading() -> None:
    channel = fading()
    whole, parts = AirLedger(channel), AirLedger(channel)
    whole.start_round(2)
    parts.start_round(2)
    seconds = whole.book(0, "up", "activation", 6_000_000, 0)
    total = sum(parts.book(0, "up", "activation", 60_000, 0) for _ in range(100))
    assert seconds > 0.3  # over several fading blocks
    assert total == pytest.approx(seconds)


def test_order_of_clients_does_not_change_the_books() -> None:
    ledgers = [AirLedger(fading()), AirLedger(fading())]
    for ledger, order in zip(ledgers, ([0, 1, 2], [2, 0, 1]), strict=True):
        ledger.start_round(0)
        for _ in range(3):
            for client in order:
                ledger.book(client, "up", "gradient", 300_000 + client, 0)
    assert ledgers[0].rows() == ledgers[1].rows()
    assert ledgers[0].totals() == ledgers[1].totals()


def test_a_ledger_resumes_where_it_was() -> None:
    channel = fading(deadline_s=0.05)

    def play(ledger: AirLedger, rounds: range) -> AirLedger:
        for round in rounds:
            ledger.start_round(round, {0: 5e5})
            for client in range(2):
                ledger.book(client, "up", "activation", 400_000, 50_100)
                ledger.book(client, "down", "evaluation", 1000, 200)
                ledger.deliver(client, 150_000, 19_000)
        return ledger

    whole = play(AirLedger(channel), range(6))
    first = play(AirLedger(channel), range(3))
    resumed = AirLedger(channel)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    play(resumed, range(3, 6))
    assert 0 < whole.totals()["late_deliveries"] < 12
    assert resumed.totals() == whole.totals()
    assert resumed.rows() == whole.rows()
    assert resumed.outside_bits() == whole.outside_bits()


@pytest.mark.parametrize(
    ("direction", "kind", "bits"),
    [
        ("up", "adapter", 1),
        ("down", "gradient", 1),
        ("side", "control", 1),
        ("side", "evaluation", 1),
        ("up", "control", -1),
    ],
)
def test_impossible_entries_are_refused(direction: str, kind: str, bits: int) -> None:
    ledger = AirLedger(flat())
    ledger.start_round(0)
    with pytest.raises(FedloraError, match="cannot book"):
        ledger.book(0, direction, kind, bits, 0)


def test_nothing_is_booked_outside_a_round() -> None:
    with pytest.raises(FedloraError, match="no round is open"):
        AirLedger(flat()).book(0, "up", "control", 1, 1)


def test_delivery_integrates_the_rate_over_the_blocks() -> None:
    channel = fading()
    start_s, bits = 0.234, 9_000_000
    sent = deliver(channel, bits, 0, 4, start_s=start_s)
    times = start_s + (np.arange(20_000) + 0.5) / 20_000 * sent.seconds
    rates = [channel.truth(0, 4, t).down_rate_bps for t in times]
    assert sent.seconds > 1.0  # beyond the start of the next round
    assert np.mean(rates) * sent.seconds == pytest.approx(bits, rel=1e-3)


def test_a_deadline_cuts_an_integral_short() -> None:
    channel = fading()
    needed = deliver(channel, 5_000_000, 1, 0, start_s=0.05).seconds
    assert deliver(channel, 5_000_000, 1, 0, start_s=0.05, deadline_s=needed * 1.001).delivered
    late = deliver(channel, 5_000_000, 1, 0, start_s=0.05, deadline_s=needed / 2)
    assert not late.delivered
    assert late.seconds == needed / 2
    sent = deliver(channel, late.bits_sent, 1, 0, start_s=0.05)
    assert sent.seconds == pytest.approx(needed / 2, rel=1e-5)


def test_starts_on_the_edge_of_a_block_come_to_an_end() -> None:
    channel = fading()
    for start_s in (0.1, 0.2, 0.30000000000000004, 0.3, 0.7, 0.7999999999999999, 2.9):
        near, far = (
            deliver(channel, 3_000_000, 0, 0, start_s=start_s + shift) for shift in (0, 1e-9)
        )
        assert near.seconds == pytest.approx(far.seconds, rel=1e-6)


def test_directions_have_their_own_rate() -> None:
    class Slow(ChannelModel):
        def sample(self, client: int, block: int) -> Link:
            return Link(0.0, 20.0, 1e6)

    channel = Channel(ZERO_DB, Slow(ZERO_DB, 0), 0)
    assert deliver(channel, 1_000_000, 0, 0, direction="up").seconds == pytest.approx(1.0)
    down = deliver(channel, 1_000_000, 0, 0, direction="down").seconds
    assert down == pytest.approx(1 / math.log2(101))


@pytest.mark.parametrize(
    "options", [{}, {"correlation": "ar1", "ar1_coefficient": 0.9, "duplex": "fdd"}]
)
def test_a_link_in_a_deep_fade_is_slow_but_reckoned_at_once(options: dict[str, Any]) -> None:
    config = ChannelConfig(
        model="rayleigh", options=options, snr_db=(-60.0,), round_s=1.0, coherence_s=0.01
    )
    ledger = AirLedger(build_channel(config, 0))
    ledger.start_round(0)
    # At a low SNR the ergodic capacity is the mean SNR in nats: 7 million fading blocks a payload.
    expected_s = 1e6 * math.log(2) / (1e-6 * 1e6)
    for _ in range(2):
        assert ledger.book(0, "up", "activation", 10**6, 0) == pytest.approx(expected_s, rel=0.3)
    late = ledger.deliver(0, 10**6, 0)
    assert (late.delivered, late.seconds) == (False, 1.0)


def test_a_weak_link_looks_at_few_blocks_however_many_payloads_it_carries() -> None:
    """Two directions of 1,000 blocks; a round of 40 payloads at 10,000 each took half a minute."""
    config = ChannelConfig(model="rayleigh", snr_db=(-60.0,), round_s=1.0, coherence_s=0.01)
    looked_at: set[tuple[int, int]] = set()

    class Counted(RayleighChannel):
        def sample(self, client: int, block: int) -> Link:
            looked_at.add((client, block))
            return super().sample(client, block)

    ledger = AirLedger(Channel(config, Counted(config, 0), 0))
    for round in range(2):
        looked_at.clear()
        ledger.start_round(round)
        seconds = [ledger.book(0, "up", "activation", 10**5, 0) for _ in range(20)]
        seconds += [ledger.book(0, "down", "control", 10**5, 0) for _ in range(20)]
        assert len(looked_at) <= 2 * 1000 + 2
        assert seconds == pytest.approx([1e5 * math.log(2)] * 40, rel=0.1)


def test_clients_that_would_cross_their_cell_all_the_time_are_refused() -> None:
    """A random waypoint is reckoned leg by leg; a million legs a block would take minutes."""
    options = {"mobility": "waypoint", "cell_radius_m": 1.0, "speed_mps": 11.0}
    with pytest.raises(FedloraError, match=r"speed_mps is 11\.0; set a finite number of at m"):
        build_channel(ChannelConfig(model="log_distance", options=options), 0)
    config = ChannelConfig(model="log_distance", options=options, coherence_s=5.0)
    assert build_channel(config, 0).truth(0, 900).down_rate_bps > 0


def test_a_payload_of_many_blocks_ends_at_its_deadline_or_in_time() -> None:
    def sent(deadline_s: float) -> Delivery:
        config = ChannelConfig(snr_db=(0.0,), round_s=1.0, coherence_s=1e-3)
        return deliver(build_channel(config, 0), 50_000_000, 0, 0, deadline_s=deadline_s)

    # 50 Mbit at 1 Mbit/s take 50,000 blocks.
    assert sent(51.0).seconds == pytest.approx(50.0)
    late = sent(30.0)
    assert (late.delivered, late.seconds) == (False, 30.0)
    assert late.bits_sent == pytest.approx(30_000_000, rel=1e-6)


def test_a_ledger_of_a_release_that_knew_fewer_kinds_is_gone_on_with() -> None:
    before = AirLedger(flat())
    before.start_round(0)
    before.book(0, "up", "activation", 500_000, 62_600)
    state = before.state_dict()
    for way in ("up", "down"):
        for table in ("bits", "seconds"):
            del state["rows"][0][table][way]["head"]
    ledger = AirLedger(flat())
    ledger.load_state_dict(state)
    assert ledger.totals() == before.totals()
