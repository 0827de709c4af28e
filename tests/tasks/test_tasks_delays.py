"""Ends of a channel forecast whose places are delays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.federation import Federation, relative
from support.values import UnsplitValues, scenario, without_tokenizer

from fedlora.check import check_scenario
from fedlora.config import ForecastConfig
from fedlora.errors import FedloraError
from fedlora.tasks.forecast import go_on
from fedlora.tasks.forecast.delay_modules import DelayFront, DelayHead

CONFIG = ForecastConfig(features=12, front="delay", patch=2, width=5, base="pad")
DELAYS = ["task.kind=forecast", "task.forecast.features=8", "task.forecast.front=delay"]
DELAYS += ["task.forecast.history=6", "task.forecast.horizon=3", "task.forecast.patch=2"]
DELAYS += ["task.forecast.normalise=power"]


def channels(samples: int = 5) -> torch.Tensor:
    """Return complex responses (samples, steps, subcarriers)."""
    numbers = torch.randn(2, samples, 16, 6, generator=torch.Generator().manual_seed(3))
    return torch.complex(*numbers)


def parts(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.real, x.imag], -1)


def unlike_start(module: Any) -> Any:
    """Return a module with weights that are none of those that it begins with."""
    for number, parameter in enumerate(module.parameters()):
        draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data.copy_(0.3 * draw)
    return module


def test_training_begins_with_each_delays_own_recurrence():
    x = channels()
    told = DelayHead(CONFIG, 16)(torch.randn(5, 3, 16), parts(x))
    taps = torch.fft.ifft(x.to(torch.complex128), dim=-1).transpose(1, 2)
    expected = torch.fft.fft(go_on(taps, 2, 4).transpose(1, 2), dim=-1)
    torch.testing.assert_close(told, parts(expected).float(), atol=1e-4, rtol=1e-4)


def test_a_channel_that_is_turned_by_a_phase_is_predicted_turned_by_it():
    x, phase = channels(), torch.exp(torch.tensor(1j * math.pi / 3.7))
    front, head = unlike_start(DelayFront(CONFIG, 16)), unlike_start(DelayHead(CONFIG, 16))

    def predicted(response: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = front(parts(response).reshape(5, 3, -1))
        real, imaginary = head(z, parts(response)).chunk(2, -1)
        return z, torch.complex(real, imaginary)

    (z, straight), (turned_z, turned) = predicted(x), predicted(phase * x)
    torch.testing.assert_close(turned_z, z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned, phase * straight, atol=1e-3, rtol=1e-3)
    assert float((straight.detach() - x[:, -1:]).abs().max()) > 0.1


def test_a_place_holds_the_delays_that_its_vector_is_changed_by():
    x, front = channels(1), unlike_start(DelayFront(CONFIG, 16))
    taps = torch.fft.ifft(x, dim=-1)
    taps[..., :2] += torch.randn(16, 2)  # the earliest two delays: the last place
    changed = torch.fft.fft(taps, dim=-1)
    before, after = (front(parts(one).reshape(1, 3, -1))[0] for one in (x, changed))
    torch.testing.assert_close(before[:2], after[:2], atol=1e-4, rtol=1e-4)
    assert float((before[2] - after[2]).detach().abs().max()) > 0.1


def test_numbers_that_are_0_give_finite_vectors_and_gradients():
    silent = torch.zeros(2, 16, 12)
    front, head = DelayFront(CONFIG, 16), DelayHead(CONFIG, 16)
    predicted = head(front(silent.reshape(2, 3, -1)), silent)
    predicted.square().sum().backward()
    assert torch.isfinite(predicted).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def error(head: Any, states: torch.Tensor, made: Any) -> torch.Tensor:
    """Return the sum of mean squared errors, a sample alone at a time."""
    total = torch.zeros(())
    for z, sample in zip(states, made, strict=True):
        predicted = head(z[None], sample.values.reshape(1, 6, 8))[0]
        wanted = (sample.target.steps - sample.target.mean) / sample.target.scale
        total = total + (predicted - wanted).square().mean()
    return total


def test_split_training_over_delays_equals_the_undivided_model(checkpoints, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(24, 10, 8)), site=["a", "b"] * 12)
    bare: Path = without_tokenizer(checkpoints["llama"], tmp_path / "llama")
    keys = [f"data.train={tmp_path / 'x.npz'}", "task.forecast.base=pad", "task.forecast.width=4"]
    ends = ["train.embedding=true", "front.share=step", "train.rounds=1"]
    config = scenario(bare, *DELAYS, *keys, *ends)
    check_scenario(config)
    federation = Federation(config)
    unsplit = UnsplitValues(federation, error, config.front.share)
    expected = unsplit.run()
    federation.run()
    assert federation.recorder.losses() == pytest.approx(expected, rel=1e-5)
    for name, factor in federation.server.engine.adapter().items():
        assert relative(factor, unsplit.factors[name].detach()) < 1e-4, name


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"patch": 4}, "patch is 4, which does not divide the 6 delays"),
        ({"base": "none"}, "front is delay, .*base is none; set base to covariance, pad or last"),
        ({"features": 9}, "front is delay, .*features is 9; set an even number"),
    ],
)
def test_delays_that_make_no_places_are_refused(keys, said):
    given = {"features": 12, "front": "delay", "patch": 2, "base": "pad", **keys}
    with pytest.raises(FedloraError, match=said):
        ForecastConfig(**given)
