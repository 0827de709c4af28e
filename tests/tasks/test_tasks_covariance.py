"""Recurrences that neighbouring delays have in common, and what heads begin with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlora.config import ForecastConfig
from fedlora.tasks.forecast import go_on_together
from fedlora.tasks.forecast.delay_modules import DelayHead
from fedlora.tasks.forecast.modules import ForecastHead


def drawn(*shape: int, seed: int = 5) -> torch.Tensor:
    numbers = torch.randn(2, *shape, dtype=torch.float64, generator=torch.manual_seed(seed))
    return torch.complex(*numbers)


def test_it_solves_the_stacked_equations_of_a_delay_and_its_neighbours():
    taps, order, neighbours = drawn(6, 12), 3, 2
    told = go_on_together(taps, order, 1, neighbours).squeeze(-1)
    x = taps.numpy()
    for delay in range(6):
        equations = []
        for distance in range(-neighbours, neighbours + 1):
            own = x[(delay + distance) % 6]
            for series in (own, own[::-1].conj()):
                equations += [series[t : t + order + 1] for t in range(12 - order)]
        stacked = np.array(equations)
        known, following = stacked[:, :order], stacked[:, order]
        power = np.square(np.abs(known)).sum() / order
        loaded = np.concatenate([known, np.sqrt(1e-4 * power) * np.eye(order)])
        wanted = np.concatenate([following, np.zeros(order)])
        coefficients = np.linalg.lstsq(loaded, wanted, rcond=None)[0]
        assert told[delay].item() == pytest.approx(x[delay, -order:] @ coefficients, rel=1e-6)


def test_paths_with_common_doppler_shifts_are_gone_on_with():
    time = torch.arange(20)
    shifts = torch.exp(1j * torch.tensor([0.31, -0.12])[:, None] * time)
    taps = (drawn(5, 2) @ shifts.to(torch.complex128))[:, :]
    told = go_on_together(taps[:, :16], 2, 4, 1)
    assert float((told - taps[:, 16:]).abs().max() / taps.abs().max()) < 0.01


def test_noise_disturbs_it_less_than_recurrences_of_each_delay_alone():
    time = torch.arange(20)
    shifts = torch.exp(1j * torch.tensor([0.31, -0.12])[:, None] * time)
    clean = drawn(200, 8, 2) @ shifts.to(torch.complex128)
    noisy = clean[..., :16] + 0.3 * drawn(200, 8, 16, seed=6)
    errors = [
        float((go_on_together(noisy, 5, 4, around) - clean[..., 16:]).abs().square().mean())
        for around in (0, 1)
    ]
    assert errors[1] < 0.85 * errors[0]


def test_no_step_is_above_twice_the_largest_known_one():
    taps = drawn(3, 8) * torch.exp(torch.arange(8.0))
    told = go_on_together(taps, 2, 50, 1)
    assert bool((told.abs() <= 2.0001 * taps.abs().amax(-1, keepdim=True)).all())
    assert not go_on_together(torch.zeros(3, 8, dtype=torch.complex128), 2, 5, 1).any()


@pytest.mark.parametrize("front", ["channel", "delay"])
def test_heads_begin_with_it(front):
    patch = 3 if front == "delay" else 4
    config = ForecastConfig(features=12, front=front, patch=patch, base="covariance", base_order=5)
    history = drawn(2, 16, 6).to(torch.complex64)
    head = (DelayHead if front == "delay" else ForecastHead)(config, 16)
    told = head(torch.randn(2, config.places, 16), torch.cat([history.real, history.imag], -1))
    taps = torch.fft.ifft(history.to(torch.complex128), dim=-1).transpose(1, 2)
    expected = torch.fft.fft(go_on_together(taps, 5, 4, 1).transpose(1, 2), dim=-1)
    expected = torch.cat([expected.real, expected.imag], -1).float()
    torch.testing.assert_close(told, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("front", ["linear", "channel", "delay"])
def test_heads_begin_with_the_last_step(front):
    features = 7 if front == "linear" else 12
    patch = 3 if front == "delay" else 4
    config = ForecastConfig(features=features, front=front, patch=patch, base="last", base_order=64)
    history = torch.randn(2, 16, features, generator=torch.manual_seed(2))
    head = (DelayHead if front == "delay" else ForecastHead)(config, 16)
    told = head(torch.randn(2, config.places, 16), history)
    torch.testing.assert_close(told, history[:, -1:].expand(2, 4, features), atol=1e-5, rtol=1e-5)
