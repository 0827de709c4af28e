"""The 3GPP TR 38.901 models against Sionna's own output."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy import stats

from fedlora.channel.models.sionna import CdlChannel, TdlChannel, UmaChannel, UmiChannel
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError

MODELS = [TdlChannel, CdlChannel, UmiChannel, UmaChannel]
CARRIER_HZ = 3.5e9


@pytest.fixture
def sionna():
    pytest.importorskip("sionna", reason="needs fedlora[sionna]")
    from sionna.phy.channel import tr38901

    return tr38901


def antenna(tr38901):
    return tr38901.PanelArray(
        num_rows_per_panel=1,
        num_cols_per_panel=1,
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=CARRIER_HZ,
        precision="double",
        device="cpu",
    )


@pytest.mark.parametrize("profile", ["A", "C", "D", "B100"])
def test_tdl_taps_are_sionnas(sionna, profile: str) -> None:
    model = TdlChannel(ChannelConfig(), 1, profile=profile, delay_spread_s=300e-9)
    own = [model.paths(client, 2) for client in range(1500)]
    spread = {"delay_spread": 300e-9} if len(profile) == 1 else {}
    reference = sionna.TDL(
        profile, carrier_frequency=CARRIER_HZ, **spread, precision="double", device="cpu"
    )
    coefficients, delays_s = reference(1500, 1, 1.0)
    assert np.allclose(own[0][1], delays_s[0, 0, 0].cpu().numpy())
    mine = np.abs([taps for taps, _ in own]) ** 2
    theirs = (coefficients[:, 0, 0, 0, 0, :, 0].abs() ** 2).cpu().numpy()
    assert mine.mean(0) == pytest.approx(theirs.mean(0), rel=0.2)
    assert mine.mean(0).sum() == pytest.approx(1.0, abs=0.05)
    assert stats.ks_2samp(mine[:, 0], theirs[:, 0]).pvalue > 0.01
    assert stats.ks_2samp(mine.sum(1), theirs.sum(1)).pvalue > 0.01


def test_tdl_without_line_of_sight_is_rayleigh(sionna) -> None:
    model = TdlChannel(ChannelConfig(), 2, profile="B")
    taps = np.array([model.paths(client, 0)[0] for client in range(1500)])
    power = np.abs(taps[:, 0]) ** 2
    assert stats.kstest(power / power.mean(), "expon").pvalue > 0.01


def test_cdl_power_and_delays_are_sionnas(sionna) -> None:
    model = CdlChannel(ChannelConfig(), 3, profile="C", delay_spread_s=100e-9)
    own = [model.paths(client, 1) for client in range(250)]
    reference = sionna.CDL(
        "C",
        100e-9,
        CARRIER_HZ,
        ut_array=antenna(sionna),
        bs_array=antenna(sionna),
        min_speed=1.0,
        max_speed=1.0,
        precision="double",
        device="cpu",
    )
    coefficients, delays_s = reference(1000, 1, 1.0)
    assert np.allclose(own[0][1], delays_s[0, 0, 0].cpu().numpy())
    mine = (np.abs([taps for taps, _ in own]) ** 2).sum(1)
    theirs = (coefficients[:, 0, 0, 0, 0, :, 0].abs() ** 2).sum(-1).cpu().numpy()
    assert mine.mean() == pytest.approx(theirs.mean(), rel=0.1)
    assert stats.ks_2samp(mine, theirs).pvalue > 0.01


def test_urban_path_gain_is_sionnas(sionna) -> None:
    import torch

    model = UmiChannel(ChannelConfig(), 4, cell_radius_m=150.0)
    own_db = [
        10 * math.log10((np.abs(model.paths(client, 0)[0]) ** 2).sum()) for client in range(150)
    ]
    rng = np.random.default_rng(0)
    users = 400
    distance_m = 150.0 * np.sqrt(rng.uniform((10 / 150) ** 2, 1, users))
    bearing = rng.uniform(0, 2 * math.pi, users)
    places = np.stack([distance_m * np.cos(bearing), distance_m * np.sin(bearing)], 1)
    reference = sionna.UMi(
        carrier_frequency=CARRIER_HZ,
        o2i_model="low",
        ut_array=antenna(sionna),
        bs_array=antenna(sionna),
        direction="downlink",
        precision="double",
        device="cpu",
    )

    def rows(values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None]

    reference.set_topology(
        ut_loc=rows(np.column_stack([places, np.full(users, 1.5)])),
        bs_loc=rows(np.tile([0.0, 0.0, 10.0], (users, 1))),
        ut_orientations=rows(np.zeros((users, 3))),
        bs_orientations=rows(np.zeros((users, 3))),
        ut_velocities=rows(np.tile([1.0, 0.0, 0.0], (users, 1))),
        in_state=torch.zeros(users, 1, dtype=torch.bool),
    )
    coefficients, _ = reference(1, 1.0)
    theirs_db = 10 * np.log10((coefficients[..., 0].abs() ** 2).sum(-1).flatten().cpu().numpy())
    assert stats.ks_2samp(own_db, theirs_db).pvalue > 0.01


@pytest.mark.parametrize("cls", MODELS)
def test_any_block_can_be_had_first(sionna, cls) -> None:
    config = ChannelConfig(round_s=0.1, coherence_s=0.01)
    straight, backwards = cls(config, 5), cls(config, 5)
    expected = {(c, b): straight.sample(c, b) for c in range(2) for b in range(5)}
    assert {key: backwards.sample(*key) for key in reversed(expected)} == expected
    assert len(set(expected.values())) == len(expected)


@pytest.mark.parametrize("cls", MODELS)
def test_the_channel_moves_with_the_doppler_shift(sionna, cls) -> None:
    # 1 m/s at 3.5 GHz is 11.7 Hz: a millisecond changes little, a tenth of a second a lot.
    def change(step_s: float) -> float:
        model = cls(ChannelConfig(round_s=step_s), 6)
        pairs = [(model.paths(c, 0)[0], model.paths(c, 1)[0]) for c in range(10)]
        return float(np.mean([np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairs]))

    assert change(0.001) < 0.1
    assert change(0.1) > 0.3


def test_the_reported_snr_has_the_capacity_of_the_selective_band(sionna) -> None:
    from sionna.phy.channel import cir_to_ofdm_channel

    torch = pytest.importorskip("torch")
    config = ChannelConfig(snr_db=(12.0,), bandwidth_hz=(20e6,))
    model = TdlChannel(config, 7, profile="C", delay_spread_s=300e-9)
    link = model.sample(0, 3)
    taps, delays_s = model.paths(0, 3)
    frequencies = torch.tensor(((np.arange(64) + 0.5) / 64 - 0.5) * 20e6)
    response = cir_to_ofdm_channel(
        frequencies,
        torch.tensor(taps).reshape(1, 1, 1, 1, 1, -1, 1),
        torch.tensor(delays_s).reshape(1, 1, 1, -1),
    )
    snr = 10**1.2 * (response.abs() ** 2).flatten().numpy()
    capacity = np.mean(np.log2(1 + snr))
    assert math.log2(1 + 10 ** (link.down_snr_db / 10)) == pytest.approx(capacity, rel=1e-6)
    assert np.ptp(snr) > 1.0  # the band is selective


def test_sionna_leaves_the_runs_random_numbers_alone(sionna) -> None:
    import torch

    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    for cls in MODELS:
        cls(ChannelConfig(), 0).sample(0, 1)
    assert torch.equal(torch.rand(3), expected)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sionna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sionna", None)
    with pytest.raises(FedloraError, match=r"model tdl needs Sionna .* pip install 'fedlora\[sio"):
        TdlChannel(ChannelConfig(model="tdl"), 0)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (TdlChannel, {"profile": "Z"}, "'Z'; choose one of A, B"),
        (CdlChannel, {"profile": "A30"}, "'A30'; choose one of A, B, C, D, E"),
        (CdlChannel, {"delay_spread_s": 0}, "delay_spread_s is 0"),
        (UmaChannel, {"cell_radius_m": 20.0}, "cell_radius_m is 20.0; set a finite number from 35"),
        (UmiChannel, {"indoor": "yes"}, "indoor is 'yes'; set true or false"),
        (TdlChannel, {"carrier_hz": 1e6}, "carrier_hz is 1000000.0"),
    ],
)
def test_wrong_options_are_named(sionna, cls, options: dict, message: str) -> None:
    with pytest.raises(FedloraError, match=message):
        cls(ChannelConfig(), 0, **options)
