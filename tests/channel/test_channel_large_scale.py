"""Path loss, shadowing and movement."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedlora.channel.models.log_distance import LogDistanceChannel, ShadowMap, budget_snr_db
from fedlora.channel.models.mobility import Linear, RandomWaypoint
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError

QUIET = {"shadowing_db": 0.0, "small_scale": "none"}


def test_path_loss_is_that_of_free_space_and_then_of_the_exponent() -> None:
    model = LogDistanceChannel(ChannelConfig(), 0, exponent=3.2, reference_m=10.0, carrier_hz=2e9)
    # Friis at 2 GHz and 10 m: 32.4478 + 20 log10(2000 MHz) + 20 log10(0.01 km).
    assert model.path_loss_db(10.0) == pytest.approx(58.468, abs=0.001)
    free_space = -27.55 + 20 * math.log10(2000.0)  # of a metre, for MHz (ITU-R P.525)
    for distance_m in (0.5, 1.0, 3.0, 10.0):
        expected = free_space + 20 * math.log10(distance_m)
        assert model.path_loss_db(distance_m) == pytest.approx(expected, abs=0.01)
    assert model.path_loss_db(0.0) == pytest.approx(0.0, abs=1e-9)
    assert model.path_loss_db(100.0) - model.path_loss_db(10.0) == pytest.approx(32.0)


def test_snr_follows_from_the_link_budget() -> None:
    config = ChannelConfig(bandwidth_hz=(10e6,), up_power_w=0.2, down_power_w=2.0)
    model = LogDistanceChannel(config, 3, **QUIET)
    link = model.sample(0, 0)
    distance_m = float(np.linalg.norm(model.mobility.position_m(0, 0.0)))
    # 23.01 dBm - loss + 174 dBm/Hz - 70 dB(10 MHz) - 7 dB noise figure.
    assert link.up_snr_db == pytest.approx(
        23.0103 - model.path_loss_db(distance_m) + 97.0, abs=1e-4
    )
    assert link.down_snr_db - link.up_snr_db == pytest.approx(10.0)


def test_a_budget_has_the_noise_of_its_bandwidth() -> None:
    assert budget_snr_db(1.0, 100.0, 1e6, 0.0) == pytest.approx(30 - 100 + 174 - 60)


def test_shadowing_has_its_deviation_and_correlation() -> None:
    maps = [ShadowMap(seed, 8.0, 40.0) for seed in range(4000)]
    for distance_m in (0.0, 20.0, 40.0, 100.0):
        pairs = np.array(
            [[m.loss_db(np.zeros(2)), m.loss_db(np.array([0.6, 0.8]) * distance_m)] for m in maps]
        )
        assert np.mean(pairs[:, 0] * pairs[:, 1]) / 64 == pytest.approx(
            math.exp(-distance_m / 40), abs=0.05
        )
    assert stats.kstest(pairs[:, 0] / 8.0, "norm").pvalue > 0.01


@pytest.mark.parametrize("mobility", [Linear(1, 100.0, 3.0), RandomWaypoint(1, 100.0, 3.0)])
def test_clients_keep_to_the_cell_and_to_their_speed(mobility: Linear) -> None:
    track = np.array([mobility.position_m(0, t / 10) for t in range(5000)])
    assert np.abs(track).max() <= 100.0
    steps = np.linalg.norm(np.diff(track, axis=0), axis=1)
    assert steps.max() <= 0.3 + 1e-9
    assert np.median(steps) == pytest.approx(0.3)  # shorter only where a way bends
    assert np.linalg.norm(np.ptp(track, axis=0)) > 50


@pytest.mark.parametrize("kind", [Linear, RandomWaypoint])
def test_a_place_does_not_depend_on_the_times_asked_for(kind: type[Linear]) -> None:
    times = np.random.default_rng(0).uniform(0, 5000, 50)
    mobile, fresh = kind(2, 200.0, 10.0), kind(2, 200.0, 10.0)
    expected = {t: tuple(mobile.position_m(4, t)) for t in sorted(times)}
    assert {t: tuple(fresh.position_m(4, t)) for t in times} == expected


def test_resting_clients_stay_and_moving_ones_do_not() -> None:
    config = ChannelConfig(round_s=10.0)
    static = LogDistanceChannel(config, 0, **QUIET)
    assert static.sample(0, 0) == static.sample(0, 50)
    for mobility in ("linear", "waypoint"):
        moving = LogDistanceChannel(config, 0, mobility=mobility, speed_mps=5.0, **QUIET)
        assert moving.sample(0, 0) != moving.sample(0, 50)


def test_small_scale_fading_multiplies_the_slow_one() -> None:
    config = ChannelConfig()
    slow = LogDistanceChannel(config, 5, small_scale="none")
    fast = LogDistanceChannel(config, 5, small_scale="rayleigh")
    gains_db = [fast.sample(c, 0).down_snr_db - slow.sample(c, 0).down_snr_db for c in range(2000)]
    power = 10 ** (np.array(gains_db) / 10)
    assert stats.kstest(power, "expon").pvalue > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exponent": -1}, "exponent is -1; set a finite number from 0.1 to 20"),
        ({"mobility": "train"}, "'train'; choose one of static, linear, waypoint"),
        ({"small_scale": "nakagami"}, "'nakagami'; choose one of none, rayleigh, rician"),
        ({"shadowing_db": float("nan")}, "shadowing_db is nan"),
        ({"carrier_hz": 1e-320}, "carrier_hz is 1e-320; set a finite number from 1000 to 1e[+]15"),
        ({"cell_radius_m": 1e308}, "cell_radius_m is 1e[+]308; .* from 0.001 to 1e[+]09"),
        ({"decorrelation_m": 1e-320}, "decorrelation_m is 1e-320; set a finite number from 0.001"),
        ({"reference_m": float("inf")}, "reference_m is inf"),
        ({"speed_mps": 1e30}, "speed_mps is 1e[+]30; set a finite number of at most 3000"),
        ({"speed_mps": 0}, "speed_mps is 0; set a finite number above 0"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(FedloraError, match=message):
        LogDistanceChannel(ChannelConfig(), 0, **options)
