"""Small-scale fading against distributions and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import exp1, j0

from fedlora.channel.models.fading import (
    AutoregressiveScatter,
    JakesScatter,
    RayleighChannel,
    RicianChannel,
    SmallScaleFading,
)
from fedlora.channel.rate import Shannon
from fedlora.channel.streams import Stream
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError

DOWN, UP = Stream.DOWN_FADING, Stream.UP_FADING
CORRELATIONS = {
    "none": {},
    "jakes": {"correlation": "jakes", "doppler_hz": 7.0},
    "ar1": {"correlation": "ar1", "ar1_coefficient": 0.9},
}


def envelopes(fading: SmallScaleFading, clients: int, blocks: range) -> np.ndarray:
    return np.abs([fading.envelope(DOWN, c, b) for c in range(clients) for b in blocks])


@pytest.mark.parametrize("options", CORRELATIONS.values(), ids=list(CORRELATIONS))
def test_rayleigh_envelope_over_clients(options: dict) -> None:
    fading = SmallScaleFading(1, 0.01, **options)
    sample = envelopes(fading, 4000, range(37, 38))
    assert stats.kstest(sample, stats.rayleigh(scale=math.sqrt(0.5)).cdf).pvalue > 0.01


@pytest.mark.parametrize("k_factor_db", [-3.0, 3.0, 10.0])
@pytest.mark.parametrize("options", CORRELATIONS.values(), ids=list(CORRELATIONS))
def test_rician_envelope_over_clients(k_factor_db: float, options: dict) -> None:
    k = 10 ** (k_factor_db / 10)
    fading = SmallScaleFading(2, 0.01, k_factor_db=k_factor_db, **options)
    sample = envelopes(fading, 3000, range(5, 6))
    scattered = math.sqrt(1 / (2 * (k + 1)))
    law = stats.rice(b=math.sqrt(k / (k + 1)) / scattered, scale=scattered)
    assert stats.kstest(sample, law.cdf).pvalue > 0.01


@pytest.mark.parametrize("options", CORRELATIONS.values(), ids=list(CORRELATIONS))
def test_rayleigh_envelope_of_one_client_over_time(options: dict) -> None:
    # Far enough apart that the blocks are as good as independent.
    fading = SmallScaleFading(3, 1.0, **options)
    sample = envelopes(fading, 1, range(0, 150_000, 60))
    assert stats.kstest(sample, stats.rayleigh(scale=math.sqrt(0.5)).cdf).pvalue > 0.01


def autocorrelation(gains: np.ndarray, lag: int) -> complex:
    """Over clients and time; ``gains`` is of shape (clients, blocks)."""
    return complex(np.mean(gains[:, lag:] * np.conj(gains[:, : gains.shape[1] - lag])))


def test_jakes_autocorrelation_is_the_bessel_function() -> None:
    doppler_hz, block_s = 10.0, 0.005
    scatter = JakesScatter(4, doppler_hz, block_s)
    gains = np.array([[scatter(DOWN, c, b) for b in range(150)] for c in range(300)])
    lags = np.arange(0, 100, 3)
    measured = np.array([autocorrelation(gains, lag) for lag in lags])
    expected = j0(2 * math.pi * doppler_hz * block_s * lags)
    assert np.abs(measured - expected).max() < 0.06
    assert expected.min() < -0.4  # the lags reach beyond the first zeros


def test_autoregression_decays_geometrically() -> None:
    scatter = AutoregressiveScatter(5, 0.8)
    gains = np.array([[scatter(DOWN, c, b) for b in range(4000)] for c in range(20)])
    for lag in range(8):
        assert abs(autocorrelation(gains, lag) - 0.8**lag) < 0.03


def test_autoregression_takes_the_neighbours_correlation_from_jakes() -> None:
    fading = SmallScaleFading(6, 0.002, correlation="ar1", doppler_hz=40.0)
    gains = np.array([[fading.envelope(DOWN, c, b) for b in range(3000)] for c in range(20)])
    assert abs(autocorrelation(gains, 1) - j0(2 * math.pi * 40.0 * 0.002)) < 0.02


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 5.0, 10.0, 15.0])
def test_ergodic_rayleigh_capacity_is_the_closed_form(snr_db: float) -> None:
    config = ChannelConfig(snr_db=(snr_db,))
    model = RayleighChannel(config, 7)
    rates = [Shannon().rate_bps(model.sample(c, 0).down_snr_db, 1.0) for c in range(60_000)]
    snr = 10 ** (snr_db / 10)
    assert np.mean(rates) == pytest.approx(
        math.exp(1 / snr) * exp1(1 / snr) / math.log(2), rel=0.01
    )


@pytest.mark.parametrize("options", CORRELATIONS.values(), ids=list(CORRELATIONS))
def test_any_block_can_be_had_first(options: dict) -> None:
    order = np.random.default_rng(0).permutation(9000)[:300]
    scattered, straight = (SmallScaleFading(8, 0.01, k_factor_db=3.0, **options) for _ in range(2))
    expected = {b: straight.envelope(DOWN, 3, b) for b in sorted(order)}
    assert {b: scattered.envelope(DOWN, 3, b) for b in order} == expected


@pytest.mark.parametrize("options", CORRELATIONS.values(), ids=list(CORRELATIONS))
def test_clients_directions_and_seeds_fade_independently(options: dict) -> None:
    first, second = (SmallScaleFading(seed, 0.05, duplex="fdd", **options) for seed in (9, 10))
    base = np.array([first.envelope(DOWN, 0, b) for b in range(4000)])
    others = {
        "client": [first.envelope(DOWN, 1, b) for b in range(4000)],
        "direction": [first.envelope(UP, 0, b) for b in range(4000)],
        "seed": [second.envelope(DOWN, 0, b) for b in range(4000)],
    }
    for name, other in others.items():
        assert abs(np.mean(base * np.conj(other))) < 0.15, name


def test_time_division_is_reciprocal_and_frequency_division_is_not() -> None:
    config = ChannelConfig(snr_db=(10.0,), up_snr_offset_db=-4.0)
    tdd, fdd = (RicianChannel(config, 0, duplex=duplex).sample(0, 0) for duplex in ("tdd", "fdd"))
    assert tdd.up_snr_db == pytest.approx(tdd.down_snr_db - 4.0)
    assert fdd.up_snr_db != pytest.approx(fdd.down_snr_db - 4.0)
    assert fdd.down_snr_db == tdd.down_snr_db


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correlation": "jakes"}, "doppler_hz .* is 0"),
        ({"correlation": "ar1"}, "neither ar1_coefficient nor doppler_hz"),
        ({"correlation": "ar1", "ar1_coefficient": 1.5}, "ar1_coefficient is 1.5"),
        ({"correlation": "clarke"}, "'clarke'; choose one of none, jakes, ar1"),
        ({"duplex": "half"}, "'half'; choose one of tdd, fdd"),
        ({"k_factor_db": "six"}, "k_factor_db is 'six', a str"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(FedloraError, match=message):
        RicianChannel(ChannelConfig(), 0, **options)
