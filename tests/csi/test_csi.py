"""Channel prediction: the set that ships, what draws it, and the scenario on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.special import j0
from support.federation import Federation
from typer.testing import CliRunner

import simulations.csi
from fedlora.check import check_scenario
from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from fedlora.tasks import ErrorCounts
from simulations.csi.command import csi
from simulations.csi.generate import LIGHT_MPS, Drawn, Setting, counts, draw, stacked

FOLDER = Path(simulations.csi.__file__).parent


def quick(*overrides: str):
    few = ["train.rounds=1", "train.steps=3", "evaluate.every=1", "compute.threads=1"]
    return with_overrides(find_scenario("csi-prediction"), [*few, *overrides])


def test_the_set_that_ships_is_small_and_each_site_has_channels_of_its_own():
    train, test = (load_file(FOLDER / f"channels{end}.safetensors") for end in ("", "-test"))
    assert sum(file.stat().st_size for file in FOLDER.glob("*.safetensors")) <= 2e6
    assert train["channel"].shape == (800, 1, 20, 2, 24) and len(test["channel"]) == 200
    assert np.bincount(train["site"]).tolist() == [80] * 10
    assert set(train["speed_kmh"].tolist()) == {10, 30, 60, 100}
    power = (train["channel"].astype(float) ** 2).sum((1, 2, 3, 4)) / (20 * 24)
    np.testing.assert_allclose(power, 1, rtol=0.02)
    assert not {c.tobytes() for c in train["channel"]} & {c.tobytes() for c in test["channel"]}


def test_a_few_steps_of_the_scenario_learn_over_sites_with_their_own_channels():
    config = quick()
    check_scenario(config)
    federation = Federation(config)
    sites = [{s.source for s in c.door.truth(c.train)} for c in federation.clients]
    assert [len(own) for own in sites] == [80] * 10
    federation.run()
    (record,) = federation.recorder.rounds
    losses = federation.recorder.losses()
    assert losses[-1] < losses[0] and record["metrics"]["nmse"] < 1.5


@pytest.mark.parametrize(
    "overrides",
    [
        ["federation.clients=1", "partition.kind=iid"],
        ["head.share=personal", "front.share=personal"],
        ["privacy.epsilon=20", "privacy.release=full", "front.share=personal"],
    ],
    ids=" ".join,
)
def test_it_is_changed_by_overrides_alone(overrides):
    private = ["head.share=personal", "evaluate.report=true"] if "privacy" in overrides[0] else []
    check_scenario(quick(*overrides, *private))


def test_what_is_drawn_is_dealt_to_sites_and_speeds_alike():
    setting = Setting(trajectories=23, sites=3, speeds_kmh=(10.0, 50.0))
    dealt = counts(setting)
    assert sum(count for _, _, count in dealt) == 23 and len(dealt) == 6
    assert max(c for *_, c in dealt) - min(c for *_, c in dealt) <= 1
    drawn = [
        Drawn(site, speed, np.full((n, 1, 4, 3), site + 1j * speed, np.complex64))
        for site, speed, n in dealt
    ]
    arrays = stacked(drawn, 0)
    for i in range(23):
        assert (arrays["channel"][i, 0, :, 0] == arrays["site"][i]).all()
        assert (arrays["channel"][i, 0, :, 1] == arrays["speed_kmh"][i]).all()


def test_a_speed_above_nyquist_names_the_limit():
    limit = 3.6 * LIGHT_MPS / (2 * 2.4e9 * 0.5e-3)
    Setting(speeds_kmh=(limit - 1,))
    with pytest.raises(FedloraError, match=rf"500 km/h .* \(Nyquist\).* below {limit:.4g} km/h"):
        Setting(speeds_kmh=(10.0, 500.0))
    with pytest.raises(FedloraError, match="4 trajectories are fewer than 10 sites; draw more"):
        Setting(trajectories=4)


def test_a_missing_sionna_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sionna", None)
    monkeypatch.setitem(__import__("sys").modules, "sionna.phy", None)
    with pytest.raises(FedloraError, match=r"not here .*pip install 'fedlora\[sionna\]'"):
        next(draw(Setting()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out": Path("x.npz")}, r"name a \.safetensors file"),
        ({"speeds": "10,fast"}, "--speeds is '10,fast'; write km/h"),
        ({"interval_ms": float("nan")}, "--interval-ms is nan; set"),
        ({"carrier_ghz": 0.1}, "--carrier-ghz is 0.1; set 0.5 to 100"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, said):
    with pytest.raises(FedloraError, match=said):
        csi("make", **{"out": tmp_path / "x.safetensors"} | options)


def test_channels_are_drawn_of_the_asked_doppler(tmp_path):
    pytest.importorskip("sionna", reason="needs fedlora[sionna]")
    import typer

    app = typer.Typer()
    app.command()(csi)
    out = tmp_path / "x.safetensors"
    few = ["--trajectories", "60", "--sites", "2", "--speeds", "60", "--subcarriers", "4"]
    result = CliRunner().invoke(app, ["make", "--out", str(out), *few])
    assert result.exit_code == 0, result.output
    channel = load_file(out)["channel"].astype(float)
    assert channel.shape == (60, 1, 20, 2, 4)
    error = ((channel[:, :, 16:] - channel[:, :, 15:16]) ** 2).sum() / (
        channel[:, :, 16:] ** 2
    ).sum()
    assert 0.05 < error < 0.6  # Jakes' spectrum would give 0.20


@pytest.mark.parametrize(("speed_kmh", "expected"), [(10, 0.018), (55, 0.497), (100, 1.282)])
def test_persistence_meets_its_closed_form_on_jakes_fading(speed_kmh, expected):
    rng, paths, count = np.random.default_rng(0), 64, 6000
    doppler = speed_kmh / 3.6 / LIGHT_MPS * 2.4e9 * 0.5e-3
    turns = 2 * np.pi * doppler * np.arange(1, 5)
    closed = float(np.mean(2 * (1 - j0(turns))))
    assert closed == pytest.approx(expected, rel=0.03)
    angle, phase = rng.uniform(0, 2 * np.pi, (2, count, 1, paths))
    steps = np.arange(16, 21)[:, None]
    channel = np.exp(1j * (2 * np.pi * doppler * np.cos(angle) * steps + phase)).sum(-1)
    parts = torch.from_numpy(np.stack([channel.real, channel.imag], -1))
    found = ErrorCounts.of(parts[:, :1].expand(-1, 4, -1), parts[:, 1:], 0.0)
    assert found.metrics()[0].value == pytest.approx(closed, rel=0.03)
