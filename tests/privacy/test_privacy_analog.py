"""Receiver noise counts at its least, and artificial noise makes up the rest."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedlora.privacy.mechanisms import AirNoise, AnalogNoise, InsecureNoise, receiver_noise, top_up

C = 0.05


@pytest.mark.parametrize("numbers", [1, 19, 384])
@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 10.0, 30.0])
@pytest.mark.parametrize("sigma", [0.2, 1.3, 8.0])
def test_both_noises_together_meet_the_target(numbers: int, snr_db: float, sigma: float) -> None:
    found = top_up(sigma * C, C, numbers, snr_db)
    if found.artificial > 0:
        assert found.total == pytest.approx(sigma * C, rel=1e-12)
    else:
        assert found.total >= sigma * C


def test_it_is_what_a_receiver_of_an_uncoded_signal_measures() -> None:
    rng, numbers, snr_db, target = np.random.default_rng(0), 384, 6.0, 1.3 * C
    parts = top_up(target, C, numbers, snr_db)
    power, h, releases = 0.2, 0.7, 4000
    gradient = rng.normal(size=numbers)
    gradient *= C / np.linalg.norm(gradient)
    noise_power = h**2 * power / 10 ** (snr_db / 10)
    beta = math.sqrt(numbers * power / (C**2 + numbers * parts.artificial**2))
    sent = beta * (gradient + parts.artificial * rng.normal(size=(releases, numbers)))
    assert np.mean(sent**2) == pytest.approx(power, rel=0.01)  # the transmitter's limit is kept
    received = h * sent + math.sqrt(noise_power) * rng.normal(size=sent.shape)
    error = received / (h * beta) - gradient
    assert error.std() == pytest.approx(target, rel=0.005)


def test_a_worse_channel_only_adds_noise() -> None:
    parts = top_up(1.3 * C, C, 384, 10.0)
    assert receiver_noise(parts.artificial, C, 384, 3.0) > parts.receiver


def test_poor_reception_gives_privacy_for_free() -> None:
    parts = top_up(0.2 * C, C, 1, 0.0)
    assert parts.artificial == 0.0
    assert parts.receiver == pytest.approx(C)


def test_the_two_sources_add_up_to_unit_variance_and_are_independent() -> None:
    parts = AnalogNoise(3.0, 4.0)
    client, receiver = InsecureNoise(0, "0"), InsecureNoise(0, "0/receiver")
    drawn = AirNoise(client, receiver, parts).standard_normal([200_000])
    own = InsecureNoise(0, "0").standard_normal([200_000])
    assert float(drawn.std()) == pytest.approx(1.0, rel=0.01)
    assert float((drawn * own).mean()) == pytest.approx(0.6, abs=0.01)
