"""Channel prediction: the set that ships, what draws it, and the scenario on it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from safetensors.numpy import load_file
from support.federation import Federation
from typer.testing import CliRunner

import simulations.csi
from fedlora.check import check_scenario
from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from simulations.csi.command import csi
from simulations.csi.generate import (
    LIGHT_MPS,
    Drawn,
    Setting,
    band,
    counts,
    draw,
    duplexed,
    stacked,
)

FOLDER = Path(simulations.csi.__file__).parent


BRANCHES = ["task.forecast.front=channel", "task.forecast.patch=4", "task.max_length=4"]


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
    config = quick(*BRANCHES, "task.forecast.base=none", "train.warmup_steps=0")
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


def test_with_two_bands_the_steps_after_the_history_are_of_the_other():
    setting = Setting(duplex="fdd", steps=6, history=4, subcarriers=3, gap_hz=720e3)
    assert band(setting) == 3 + 2 + 3 and band(Setting(subcarriers=3)) == 3
    told = duplexed(np.broadcast_to(np.arange(8), (2, 1, 6, 8)).astype(np.complex64), setting)
    assert told[1, 0, :4].real.tolist() == [[0, 1, 2]] * 4
    assert told[1, 0, 4:].real.tolist() == [[5, 6, 7]] * 2


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


def command(*options: str) -> Result:
    app = typer.Typer()
    app.command()(csi)
    return CliRunner().invoke(app, options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "x.npz"], r"name a \.safetensors file"),
        (["--speeds", "10,fast"], "--speeds is '10,fast'; write km/h"),
        (["--interval-ms", "nan"], "--interval-ms is nan; set"),
        (["--carrier-ghz", "0.1"], r"--carrier-ghz is 0\.1; set 0\.5 to 100"),
        (["--gap-khz", "10"], "--duplex is tdd; set it to fdd"),
        (["--duplex", "fdd", "--history", "20"], "--history is 20 of 20 steps.* set 1 to 19"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, said):
    result = command("make", "--out", str(tmp_path / "x.safetensors"), *options)
    assert isinstance(result.exception, FedloraError)
    assert re.search(said, str(result.exception))


def test_channels_are_drawn_of_the_asked_doppler(tmp_path):
    pytest.importorskip("sionna", reason="needs fedlora[sionna]")
    out = tmp_path / "x.safetensors"
    few = ["--trajectories", "60", "--sites", "2", "--speeds", "60", "--subcarriers", "4"]
    result = command("make", "--out", str(out), *few)
    assert result.exit_code == 0, result.output
    channel = load_file(out)["channel"].astype(float)
    assert channel.shape == (60, 1, 20, 2, 4)
    error = ((channel[:, :, 16:] - channel[:, :, 15:16]) ** 2).sum() / (
        channel[:, :, 16:] ** 2
    ).sum()
    assert 0.05 < error < 0.6  # Jakes' spectrum would give 0.20
