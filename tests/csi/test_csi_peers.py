"""Peers of channel prediction: metrics, predictors with closed forms, and how networks learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import j0
from torch import nn

from fedlora.config import ForecastConfig
from fedlora.tasks.forecast.modules import ForecastHead
from simulations.csi.classical import Autoregression, last_value, prony
from simulations.csi.fedavg import federated_average
from simulations.csi.generate import LIGHT_MPS
from simulations.csi.metrics import nmse, nmse_mean, rate, scores, sgcs
from simulations.csi.networks import NARROW, NETWORKS, network
from simulations.csi.training import Recipe, predict, train, trained_numbers
from simulations.csi.windows import Windows

SMALL = ForecastConfig(history=8, horizon=2, features=6, patch=2, channels=2, blocks=1)


def parts_of(channel: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([channel.real, channel.imag], -1).astype(np.float32))


def windows_of(channel: np.ndarray, history: int, site: int = 0, speed: float = 1.0) -> Windows:
    """Return samples of complex channels (samples, steps, subcarriers), normalised by 2 and 0.1."""
    numbers, count = parts_of(channel), len(channel)
    scale, mean = torch.full((count, 1, 1), 2.0), torch.full((count, 1, 1), 0.1)
    known = (numbers[:, :history] - mean) / scale
    constant = [torch.full((count,), value) for value in (site, speed)]
    return Windows(known, numbers[:, history:], mean, scale, *constant)


def paths(count: int, steps: int, carriers: int, turns: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return responses of paths at whole delays, each with so many turns of phase a step."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1, len(turns)))
    t, k = np.arange(steps)[:, None, None], np.arange(carriers)[:, None]
    delay = np.arange(len(turns)) % carriers
    waves = np.exp(1j * (2 * np.pi * (t * turns - k * delay / carriers) + phase))
    return waves.sum(-1)


@pytest.mark.parametrize(("speed_kmh", "expected"), [(10, 0.018), (55, 0.497), (100, 1.282)])
def test_persistence_meets_its_closed_form_on_jakes_fading(speed_kmh, expected):
    rng, waves, count = np.random.default_rng(0), 32, 6000
    doppler = speed_kmh / 3.6 / LIGHT_MPS * 2.4e9 * 0.5e-3
    closed = float(np.mean(2 * (1 - j0(2 * np.pi * doppler * np.arange(1, 5)))))
    assert closed == pytest.approx(expected, rel=0.03)
    angle, phase = rng.uniform(0, 2 * np.pi, (2, count, 1, waves))
    turned = 2 * np.pi * doppler * np.cos(angle) * np.arange(16, 21)[:, None] + phase
    own = windows_of(np.exp(1j * turned).sum(-1)[..., None], 1)
    assert nmse(last_value(own), own.ahead) == pytest.approx(closed, rel=0.03)


def test_the_metrics_are_what_their_formulas_say():
    rng = np.random.default_rng(1)
    h = rng.normal(size=(5, 2, 3)) + 1j * rng.normal(size=(5, 2, 3))
    p = rng.normal(size=h.shape) + 1j * rng.normal(size=h.shape)
    wanted, got = parts_of(h), parts_of(p)
    error, energy = np.abs(h - p) ** 2, np.abs(h) ** 2
    assert nmse(got, wanted) == pytest.approx(error.sum() / energy.sum(), rel=1e-5)
    ratios = error.sum((1, 2)) / energy.sum((1, 2))
    assert nmse_mean(got, wanted) == pytest.approx(ratios.mean(), rel=1e-5)
    inner = np.abs((h.conj() * p).sum(-1)) ** 2
    cosine = inner / energy.sum(-1) / (np.abs(p) ** 2).sum(-1)
    assert sgcs(got, wanted) == pytest.approx(cosine.mean(), rel=1e-5)
    gain = cosine * energy.sum(-1) / energy.sum(-1).mean()
    assert rate(got, wanted) == pytest.approx(np.log2(1 + 10 * gain).mean(), rel=1e-5)
    turned = parts_of(h * 3 * np.exp(0.7j))  # no filter sees amplitude and phase
    assert sgcs(turned, wanted) == pytest.approx(1, abs=1e-6)
    assert rate(turned, wanted) == pytest.approx(rate(wanted, wanted), rel=1e-6)
    assert sgcs(0 * wanted, wanted) == 0 == rate(0 * wanted, wanted)


def test_scores_are_told_by_step_and_speed():
    channel = paths(6, 5, 3, np.array([0.03, 0.1]))
    own = windows_of(channel, 3)
    own = Windows(*(getattr(own, n) for n in ("history", "ahead", "mean", "scale", "site")),
                  torch.tensor([10.0, 10, 10, 60, 60, 60]))  # fmt: skip
    got = last_value(own)
    found = scores(got, own)
    assert found["nmse_by_step"][1] == pytest.approx(nmse(got[:, 1], own.ahead[:, 1]))
    assert found["nmse_by_speed"]["60"] == pytest.approx(nmse(got[3:], own.ahead[3:]))
    assert set(found["nmse_by_speed"]) == {"10", "60"} and found["rate_most"] > found["rate"]


def test_prony_goes_on_exactly_with_as_many_waves_a_delay_as_its_order():
    channel = paths(4, 20, 4, np.array([0.02, -0.11, 0.05, 0.0, 0.09, -0.03]))
    own = windows_of(channel, 16)
    assert nmse(prony(own, 2), own.ahead) < 1e-6
    assert nmse(prony(own, 1), own.ahead) > 1e-2


def test_a_head_that_corrects_pad_begins_with_waves_that_go_on_exactly():
    channel = paths(3, 20, 4, np.array([0.02, -0.11, 0.05, 0.0]))
    config = ForecastConfig(features=8, base="pad", base_order=1)
    head = ForecastHead(config, 12)
    numbers = parts_of(channel)
    predicted = head(torch.randn(3, 4, 12), numbers[:, :16])
    torch.testing.assert_close(predicted, numbers[:, 16:], atol=1e-3, rtol=0)
    predicted.square().sum().backward()
    assert {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()} == {
        *("mix.weight", "mix.bias", "history.weight", "gain")
    }


def test_prony_does_not_grow_on_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(50, 40, 4)) + 1j * rng.normal(size=(50, 40, 4))
    assert float(prony(windows_of(noise, 16), 8).abs().max()) < 50


def test_autoregression_is_least_squares_and_sites_reach_it_by_their_sums():
    rng = np.random.default_rng(2)
    sites = [windows_of(paths(30, 10, 3, rng.uniform(-0.2, 0.2, 5), k), 6, k) for k in range(3)]
    together = Windows(
        *(torch.cat([getattr(s, n) for s in sites]) for n in Windows.__dataclass_fields__)
    )
    fit = Autoregression.fit(sites, ridge=0.0)
    torch.testing.assert_close(fit.weight, Autoregression.fit([together], ridge=0.0).weight)
    known = together.history.transpose(1, 2).reshape(-1, 6).double().numpy()
    ahead = ((together.ahead - together.mean) / together.scale).transpose(1, 2).reshape(-1, 4)
    expected = np.linalg.lstsq(known, ahead.double().numpy())[0]
    np.testing.assert_allclose(fit.weight.numpy(), expected, rtol=1e-4, atol=1e-5)
    predicted = (known @ expected).reshape(90, 6, 4).transpose(0, 2, 1) * 2 + 0.1
    np.testing.assert_allclose(fit(together).numpy(), predicted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*NETWORKS, *NARROW])
def test_a_network_learns_waves_and_leaves_frozen_blocks_as_they_are(
    name, checkpoints: dict[str, Path]
):
    own = windows_of(paths(16, 10, 3, np.array([0.05, -0.08])), 8)
    torch.manual_seed(0)
    net = network(name, SMALL, str(checkpoints["llama"]))
    frozen = {n: p.clone() for n, p in net.named_parameters() if not p.requires_grad}
    assert bool(frozen) == (name == "llm4cp") and trained_numbers(net) > 0
    before = nmse(predict(net, own), own.ahead)
    train(net, own, Recipe(epochs=6, batch_size=8, lr=5e-3), 0)
    assert nmse(predict(net, own), own.ahead) < 0.9 * before
    assert all(torch.equal(p, frozen[n]) for n, p in net.named_parameters() if n in frozen)
    if name == "llm4cp":
        learnt = {n for n, p in net.blocks.named_parameters() if p.grad is not None}
        assert learnt and all("norm" in name for name in learnt)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.Unflatten(1, (2, 6)))


def test_fedavg_through_flower_is_local_training_of_one_site_and_the_weighted_mean_of_more():
    first = windows_of(paths(16, 10, 3, np.array([0.05])), 8)
    second = windows_of(paths(8, 10, 3, np.array([-0.1])), 8)
    recipe = Recipe(epochs=1, batch_size=8, lr=1e-2)
    alone, averaged = linear(), linear()
    train(alone, first, recipe, 3)
    sent = federated_average(averaged, [first], recipe, 1, 3)
    assert sent == 2 * 4 * trained_numbers(alone)
    torch.testing.assert_close(alone.state_dict(), averaged.state_dict())
    other, both = linear(), linear()
    federated_average(other, [second], Recipe(epochs=2, batch_size=8, lr=1e-2), 1, 3 + 7919)
    federated_average(both, [first, second], recipe, 1, 3)
    for mean, a, b in zip(*(m.parameters() for m in (both, alone, other)), strict=True):
        torch.testing.assert_close(mean, (2 * a + b) / 3)


def test_fedavg_of_single_steps_is_signed_descent_from_each_average():
    """AdamW's first step is the rate times a gradient's sign; the average then is their mean."""
    parts = [windows_of(paths(n, 10, 3, np.array([w])), 8) for n, w in ((6, 0.05), (2, -0.1))]
    recipe, seen = Recipe(epochs=3, batch_size=8, lr=1e-2, clip_norm=1e9), []
    net, expected = linear(), linear()
    rates = [1e-2 * x for x in (1.0, 1.0, 0.5 * (1 + np.cos(np.pi / 2)))]
    sent = federated_average(net, parts, recipe, 3, 0, lambda round_, _: seen.append(round_))
    for rate_ in rates:
        signs = []
        for part in parts:
            expected.zero_grad()
            part.loss(expected(part.history)).mean().backward()
            signs.append([p.grad.sign().clone() for p in expected.parameters()])
        with torch.no_grad():
            for p, a, b in zip(expected.parameters(), *signs, strict=True):
                p.sub_(rate_ * (6 * a + 2 * b) / 8)
    assert seen == [1, 2, 3] and sent == 3 * 2 * 2 * 4 * trained_numbers(net)
    for found, wanted in zip(net.parameters(), expected.parameters(), strict=True):
        assert float(((found - wanted).abs() > 1e-4).float().mean()) < 0.01  # where g is about 0


def test_fedavg_comes_out_the_same_again_and_a_site_that_fails_ends_it():
    parts = [
        windows_of(paths(8, 10, 3, np.array([w])), 8, k) for k, w in enumerate((0.1, 0.2, 0.3))
    ]
    nets = [linear(), linear()]
    for net in nets:
        federated_average(net, parts, Recipe(epochs=4, batch_size=4), 2, 5)
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict(), rtol=0, atol=0)
    broken = nn.Sequential(nn.Flatten(), nn.Linear(7, 12))  # takes another number of features
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        federated_average(broken, parts, Recipe(epochs=1, batch_size=4), 1, 0)
