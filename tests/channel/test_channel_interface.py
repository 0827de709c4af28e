"""Truth, reports and what is configured."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from fedlora.channel import ChannelState, build_channel
from fedlora.channel.channel import Channel
from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.rate import Shannon
from fedlora.config import ChannelConfig, ReportConfig, ScheduleConfig
from fedlora.errors import FedloraError, ProtocolError

AIRLLM = ChannelConfig(snr_db=(-5.0, 0.0, 5.0, 10.0, 15.0), bandwidth_hz=(5e6, 1e7))
RAYLEIGH = ChannelConfig(model="rayleigh", round_s=1.0, coherence_s=0.1)


def test_lists_are_drawn_uniformly_and_independently_each_round() -> None:
    channel = build_channel(AIRLLM, 3)
    states = [channel.truth(c, r) for c in range(20) for r in range(200)]
    counts = {
        (snr, hz): sum(s.down_snr_db == snr and s.bandwidth_hz == hz for s in states)
        for snr in AIRLLM.snr_db
        for hz in AIRLLM.bandwidth_hz
    }
    assert sum(counts.values()) == 4000
    assert all(320 < count < 480 for count in counts.values())


def test_lists_can_be_dealt_to_the_clients() -> None:
    channel = build_channel(dataclasses.replace(AIRLLM, draw="client"), 3)
    assert [channel.truth(c, 9).down_snr_db for c in range(7)] == [-5, 0, 5, 10, 15, -5, 0]
    assert [channel.truth(c, 2).bandwidth_hz for c in range(3)] == [5e6, 1e7, 5e6]


def test_a_mean_drawn_for_a_round_lasts_for_the_round() -> None:
    channel = build_channel(dataclasses.replace(AIRLLM, round_s=1.0, coherence_s=0.25), 0)
    for round in range(20):
        assert len({channel.truth(0, round, t).down_snr_db for t in (0, 0.3, 0.6, 0.9)}) == 1


def test_the_channel_does_not_depend_on_what_was_asked_before() -> None:
    for model in ("awgn", "rayleigh", "rician", "log_distance"):
        config = dataclasses.replace(RAYLEIGH, model=model, report=ReportConfig(error_db=2.0))
        once, again = build_channel(config, 5), build_channel(config, 5)
        states = [(once.truth(c, r, 0.37), once.report(c, r)) for c in range(3) for r in range(9)]
        pairs = [(c, r) for c in range(3) for r in range(9)]
        for c, r in reversed(pairs):
            assert (again.truth(c, r, 0.37), again.report(c, r)) == states[pairs.index((c, r))]


def test_fading_changes_within_a_round_when_its_coherence_is_shorter() -> None:
    channel = build_channel(RAYLEIGH, 1)
    within = [channel.truth(0, 2, t).down_snr_db for t in (0.0, 0.09, 0.11, 0.95)]
    assert within[0] == within[1]
    assert len(set(within)) == 3
    assert channel.truth(0, 2, 1.05) == channel.truth(0, 3, 0.05)


def test_fading_lasts_as_long_as_the_round_does_by_default() -> None:
    channel = build_channel(ChannelConfig(model="rayleigh", round_s=1.0), 1)
    assert channel.truth(0, 2) == channel.truth(0, 2, 1000.0)
    assert channel.truth(0, 2) != channel.truth(0, 3)


def test_rates_follow_from_snr_and_bandwidth() -> None:
    state = build_channel(ChannelConfig(snr_db=(10.0,), up_snr_offset_db=-10.0), 0).truth(0, 0)
    assert state.down_rate_bps == pytest.approx(1e6 * math.log2(11))
    assert state.up_rate_bps == pytest.approx(1e6)
    table = build_channel(ChannelConfig(snr_db=(10.0,), rate="nr_64qam"), 0).truth(0, 0)
    assert table.down_rate_bps == pytest.approx(0.9e6 * 6 * 466 / 1024)


def test_another_bandwidth_keeps_the_power() -> None:
    channel = build_channel(ChannelConfig(snr_db=(7.0,)), 0)
    wide = channel.truth(0, 0, bandwidth_hz=4e6)
    assert wide.down_snr_db == pytest.approx(7.0 - 10 * math.log10(4))
    assert wide.down_rate_bps == pytest.approx(4e6 * math.log2(1 + 10**0.7 / 4))
    assert channel.at_bandwidth(wide, 1e6) == pytest.approx(channel.truth(0, 0))


def test_a_perfect_report_is_the_truth() -> None:
    channel = build_channel(RAYLEIGH, 2)
    assert all(channel.report(c, r) == channel.truth(c, r) for c in range(3) for r in range(5))


def test_a_delayed_report_shows_the_past_and_says_how_old_it_is() -> None:
    config = dataclasses.replace(RAYLEIGH, report=ReportConfig(delay_rounds=2, delay_s=0.3))
    channel = build_channel(config, 2)
    report = channel.report(1, 5)
    assert report.age_s == pytest.approx(2.3)
    assert dataclasses.replace(report, age_s=0.0) == channel.truth(1, 2, 0.75)
    assert channel.report(1, 1).age_s == pytest.approx(1.0)
    assert dataclasses.replace(channel.report(1, 1), age_s=0.0) == channel.truth(1, 0)


def test_a_report_has_the_estimation_error_that_was_set() -> None:
    channel = build_channel(ChannelConfig(report=ReportConfig(error_db=1.5)), 4)
    errors = [
        [channel.report(c, r).up_snr_db - 10.0, channel.report(c, r).down_snr_db - 10.0]
        for c in range(20)
        for r in range(100)
    ]
    assert np.std(errors, axis=0) == pytest.approx([1.5, 1.5], rel=0.05)
    assert np.mean(errors, axis=0) == pytest.approx([0.0, 0.0], abs=0.1)
    assert abs(np.corrcoef(np.transpose(errors))[0, 1]) < 0.07
    report = channel.report(0, 0)
    assert report.down_rate_bps == Shannon().rate_bps(report.down_snr_db, 1e6)
    assert channel.truth(0, 0).down_snr_db == 10.0


def test_measured_links_have_rates_and_no_snr() -> None:
    config = ChannelConfig(model="measured", bandwidth_hz=(2e6,))
    edge, server = build_channel(config, 0), build_channel(config, 0)
    with pytest.raises(FedloraError, match="client 3 has reported no measured rate"):
        server.truth(3, 0)
    sent = edge.model.state(3, 5e6, 20e6, age_s=4.0)
    assert (sent.up_snr_db, sent.down_snr_db, sent.derived) == (None, None, True)
    server.observe(3, ChannelState.from_dict(json.loads(json.dumps(sent.to_dict()))))
    assert server.truth(3, 7).up_rate_bps == server.report(3, 7).up_rate_bps == 5e6
    server.observe(3, dataclasses.replace(sent, up_rate_bps=6e6, bandwidth_hz=9e9))
    assert server.truth(3, 8).up_rate_bps == 6e6
    assert server.truth(3, 8).bandwidth_hz == 2e6
    with pytest.raises(FedloraError, match="cannot be given 1e\\+06 Hz"):
        server.truth(3, 8, bandwidth_hz=1e6)


def test_an_equivalent_snr_gives_back_the_measured_rate() -> None:
    config = ChannelConfig(model="measured", options={"equivalent_snr": True}, gap_db=1.0)
    channel = build_channel(config, 0)
    state = channel.model.state(0, 3e6, 4e9)
    assert state.derived
    assert Shannon(1.0).rate_bps(state.up_snr_db, 1e6) == pytest.approx(3e6)
    assert Shannon(1.0).rate_bps(state.down_snr_db, 1e6) == pytest.approx(4e9)
    channel.observe(0, state)
    assert channel.truth(0, 0, bandwidth_hz=2e6).up_rate_bps > 3e6
    slowest = channel.model.state(1, 1e-30, 1e-30)
    assert Shannon(1.0).rate_bps(slowest.up_snr_db, 1e6) == pytest.approx(1e-30)


@pytest.mark.parametrize("rate", [0.0, -1.0, 5e-324, 1.7e308, math.nan, math.inf])
def test_an_impossible_measurement_is_refused(rate: float) -> None:
    with pytest.raises(FedloraError, match="measured uplink rate"):
        build_channel(ChannelConfig(model="measured"), 0).model.state(0, rate, 1e6)


def test_a_state_survives_the_wire() -> None:
    state = ChannelState(1.0, None, 1e6, 2e6, 3e6, 0.5, True)
    assert ChannelState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up_snr_db": math.nan}, "up_snr_db is nan"),
        ({"up_snr_db": "10"}, "up_snr_db is '10', a str"),
        ({"bandwidth_hz": 0}, r"bandwidth_hz is 0; set a finite number from 1 to 1e\+13"),
        ({"bandwidth_hz": None}, "bandwidth_hz is None"),
        ({"bandwidth_hz": 5e-324}, "bandwidth_hz is 5e-324"),
        ({"bandwidth_hz": 1.1e13}, "bandwidth_hz is 1100"),
        ({"up_snr_db": -1001.0}, "up_snr_db is -1001.0; set a finite number from -1000 to 1000"),
        ({"up_snr_db": 1e7, "derived": True}, "up_snr_db is 10000000.0"),
        ({"up_rate_bps": 0.0}, "up_rate_bps is 0.0"),
        ({"up_rate_bps": 5e-324}, "up_rate_bps is 5e-324"),
        ({"down_rate_bps": 1.7e308}, "down_rate_bps is 1.7e"),
        ({"down_rate_bps": -1.0}, "down_rate_bps is -1.0"),
        ({"down_rate_bps": math.inf}, "down_rate_bps is inf"),
        ({"down_rate_bps": 10**400}, "down_rate_bps"),
        ({"age_s": -1}, "age_s is -1"),
        ({"derived": 1}, "derived is 1"),
        ({"speed": 1}, "unknown key 'speed'"),
    ],
)
def test_a_state_from_the_wire_is_checked(change: dict, message: str) -> None:
    table = ChannelState(1.0, 2.0, 1e6, 2e6, 3e6).to_dict() | change
    with pytest.raises(ProtocolError, match=message):
        ChannelState.from_dict(table)


@pytest.mark.parametrize("table", [None, [], "state", {}, {1: 2}])
def test_what_is_no_state_is_refused(table: object) -> None:
    with pytest.raises(ProtocolError, match="a channel state"):
        ChannelState.from_dict(table)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"snr_db": ()}, "snr_db is empty"),
        ({"snr_db": (10.0, math.nan)}, "channel.snr_db is nan"),
        ({"bandwidth_hz": (-1.0,)}, "channel.bandwidth_hz is -1.0; set 1 to 1e"),
        ({"round_s": 10.0, "coherence_s": 3.0}, "3.0 and does not divide channel.round_s 10.0"),
        ({"round_s": 1.0, "coherence_s": 2.0}, "2.0 and does not divide"),
        ({"coherence_s": 1e-320}, "into inf fading blocks; set 1e-05 or more, or 0 for one block"),
        ({"coherence_s": 1e-9}, "into 1e[+]10 fading blocks"),
        ({"round_s": 1e308}, "round_s is 1e[+]308; set 1e-06 to 1e[+]09"),
        ({"deadline_s": 0.0}, "deadline_s is 0.0"),
        ({"deliver_every": -1}, "deliver_every is -1"),
        ({"bits_per_parameter": 0}, "bits_per_parameter is 0"),
        ({"up_power_w": math.inf}, "up_power_w is inf"),
    ],
)
def test_a_wrong_setting_is_quoted(settings: dict, message: str) -> None:
    with pytest.raises(FedloraError, match=message):
        ChannelConfig(**settings)


def test_a_wrong_report_or_schedule_is_quoted() -> None:
    with pytest.raises(FedloraError, match="error_db is -1"):
        ReportConfig(error_db=-1)
    with pytest.raises(FedloraError, match="total_bandwidth_hz is -5"):
        ScheduleConfig(total_bandwidth_hz=-5)


def test_an_unknown_model_or_option_is_named() -> None:
    with pytest.raises(FedloraError, match="'raileigh'; did you mean rayleigh"):
        build_channel(ChannelConfig(model="raileigh"), 0)
    with pytest.raises(FedloraError, match="'k_factor'; known options: k_factor_db, correlation"):
        build_channel(ChannelConfig(model="rician", options={"k_factor": 3.0}), 0)
    with pytest.raises(FedloraError, match="seed is -1"):
        build_channel(ChannelConfig(), -1)


class Fixed(ChannelModel):
    """A stranger's model."""

    def __init__(self, config: ChannelConfig, seed: int, *, snr_db: float) -> None:
        super().__init__(config, seed)
        self.snr_db = snr_db

    def sample(self, client: int, block: int) -> Link:
        return Link(self.snr_db, self.snr_db + client, 1e6)


def test_a_strangers_model_works_by_its_module_and_class() -> None:
    config = ChannelConfig(model=f"{__name__}:Fixed", options={"snr_db": 4.0})
    assert build_channel(config, 0).truth(2, 0).down_snr_db == 6.0
    with pytest.raises(FedloraError, match=r"missing a required .*'snr_db'; known options: snr_db"):
        build_channel(dataclasses.replace(config, options={}), 0)
    with pytest.raises(FedloraError, match=r"inherits from fedlora\.channel.models.base.Channel"):
        build_channel(ChannelConfig(model="fractions:Fraction"), 1)


def test_a_model_that_says_nothing_is_caught() -> None:
    class Silent(ChannelModel):
        def sample(self, client: int, block: int) -> Link:
            return Link(None, None, 1e6)

    config = ChannelConfig(model="silent")
    with pytest.raises(FedloraError, match="neither SNR nor rate"):
        Channel(config, Silent(config, 0), 0).truth(0, 0)


def test_an_edge_without_sionna_does_not_import_torch_for_its_channel() -> None:
    code = (
        "import sys, fedlora.channel.channel as c, fedlora.config.channel as f;"
        "c.build_channel(f.ChannelConfig(model='rayleigh'), 0).report(0, 0);"
        "assert not {'torch', 'sionna', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
