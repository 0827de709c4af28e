"""Channel trajectories of 3GPP TR 38.901, through Sionna (the extra ``fedlora[sionna]``)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedlora.channel.models.sionna import own_randomness
from fedlora.errors import FedloraError

LIGHT_MPS = 299_792_458.0
_PROFILES = "ABCDE"
_SPREADS_S = (50e-9, 100e-9, 300e-9)
_CENTRE_M, _RADII_M, _ANGLE = 200.0, (20.0, 50.0), math.pi / 3
_BASE_STATION_M, _TERMINAL_M, _TILT = 30.0, 1.5, math.radians(7)


@dataclass(frozen=True)
class Setting:
    """What is drawn.

    Attributes
    ----------
    model
        ``cdl``: a site has one profile (A to E) and delay spread of its own. ``uma``: a user in an
        urban macro cell without line of sight, as in LLM4CP (arXiv 2406.14440); sites are alike.
    trajectories, sites
        How many, dealt to the sites in turn.
    steps, interval_s
        Time steps of each, and the time between two.
    subcarriers, spacing_hz
        Of the band, around the carrier.
    speeds_kmh
        Speeds of the users, in turn.
    carrier_hz
        Carrier frequency.
    ports
        Antennas of the base station, half a wavelength apart.
    seed
        Everything follows from it.
    duplex
        ``tdd``: one band. ``fdd``: the first ``history`` steps are of the uplink's band, the steps
        after them of the downlink's, so that a forecast is of a band that was not measured.
    history
        Steps of the uplink's band under ``fdd``.
    gap_hz
        Between the two bands, of ``subcarriers`` each, under ``fdd``.
    """

    model: Literal["cdl", "uma"] = "cdl"
    trajectories: int = 1000
    sites: int = 10
    steps: int = 20
    interval_s: float = 0.5e-3
    subcarriers: int = 24
    spacing_hz: float = 360e3
    speeds_kmh: tuple[float, ...] = (10.0, 30.0, 60.0, 100.0)
    carrier_hz: float = 2.4e9
    ports: int = 1
    seed: int = 0
    duplex: Literal["tdd", "fdd"] = "tdd"
    history: int = 16
    gap_hz: float = 0.0

    def __post_init__(self) -> None:
        if self.duplex == "fdd" and not 0 < self.history < self.steps:
            raise FedloraError(
                f"--history is {self.history} of {self.steps} steps, which leaves no step to one "
                f"of the bands; set 1 to {self.steps - 1}, or --duplex to tdd"
            )
        limit = 3.6 * 0.5 * LIGHT_MPS / (self.carrier_hz * self.interval_s)
        fastest = max(self.speeds_kmh)
        if not fastest < limit:
            raise FedloraError(
                f"a speed of {fastest:g} km/h has Doppler shifts of {fastest / limit / 2:.2f} "
                f"periods a step of {1e3 * self.interval_s:g} ms, and above 0.5 (Nyquist) nothing "
                f"can be predicted; stay below {limit:.4g} km/h, or shorten --interval-ms"
            )
        if self.trajectories < self.sites:
            raise FedloraError(
                f"{self.trajectories} trajectories are fewer than {self.sites} sites; draw more"
            )


@dataclass(frozen=True)
class Drawn:
    """Trajectories of one site and speed.

    Attributes
    ----------
    site, speed_kmh
        Whose they are, and how fast.
    channel
        Complex, shape (trajectories, ports, steps, subcarriers), of mean power 1 each.
    """

    site: int
    speed_kmh: float
    channel: NDArray[np.complex64]


def counts(setting: Setting) -> list[tuple[int, float, int]]:
    """Return site, speed and number of trajectories of each group."""
    found: dict[tuple[int, float], int] = {}
    for number in range(setting.trajectories):
        site, turn = number % setting.sites, number // setting.sites
        speed = setting.speeds_kmh[turn % len(setting.speeds_kmh)]
        found[site, speed] = found.get((site, speed), 0) + 1
    return [(site, speed, count) for (site, speed), count in sorted(found.items())]


def draw(setting: Setting) -> Iterator[Drawn]:
    """Yield the groups of ``counts``, each from a seed of its own.

    Raises
    ------
    FedloraError
        When Sionna is not installed.
    """
    with own_randomness():
        try:
            from sionna.phy import channel, config as sionna_config
        except ImportError as error:
            raise FedloraError(
                f"channels are drawn by Sionna, which is not here ({error}); "
                "pip install 'fedlora[sionna]'"
            ) from None
    carriers = band(setting)
    offsets = channel.subcarrier_frequencies(carriers, setting.spacing_hz, device="cpu")
    for number, (site, speed, count) in enumerate(counts(setting)):
        with own_randomness():
            sionna_config.seed = setting.seed * 100_003 + number
            make = _cdl if setting.model == "cdl" else _uma
            coefficients, delays_s = make(setting, site, speed / 3.6, count)
            response = channel.cir_to_ofdm_channel(offsets, coefficients, delays_s, normalize=True)
        whole = response.cpu().numpy()  # (count, receivers, ports, senders, 1, steps, subcarriers)
        response = whole.reshape(count, setting.ports, setting.steps, carriers)
        yield Drawn(site, speed, duplexed(response.astype(np.complex64), setting))


def band(setting: Setting) -> int:
    """Return the subcarriers that are drawn: under ``fdd`` those of both bands and the gap."""
    if setting.duplex == "tdd":
        return setting.subcarriers
    return 2 * setting.subcarriers + round(setting.gap_hz / setting.spacing_hz)


def duplexed(response: NDArray[np.complex64], setting: Setting) -> NDArray[np.complex64]:
    """Return of responses (trajectories, ports, steps, carriers) those that are told."""
    if setting.duplex == "tdd":
        return response
    known = response[:, :, : setting.history, : setting.subcarriers]
    ahead = response[:, :, setting.history :, -setting.subcarriers :]
    return np.concatenate([known, ahead], axis=2)


def _array(setting: Setting, antennas: int) -> Any:
    from sionna.phy.channel.tr38901 import PanelArray

    return PanelArray(
        num_rows_per_panel=1,
        num_cols_per_panel=antennas,
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=setting.carrier_hz,
        device="cpu",
    )


def _cdl(setting: Setting, site: int, speed_mps: float, count: int) -> tuple[Any, Any]:
    from sionna.phy.channel.tr38901 import CDL

    model = CDL(
        model=_PROFILES[site % len(_PROFILES)],
        delay_spread=_SPREADS_S[site % len(_SPREADS_S)],
        carrier_frequency=setting.carrier_hz,
        ut_array=_array(setting, 1),
        bs_array=_array(setting, setting.ports),
        direction="uplink",
        min_speed=speed_mps,
        max_speed=speed_mps,  # without it speeds are drawn from 0 on
        device="cpu",
    )
    found: tuple[Any, Any] = model(count, setting.steps, 1 / setting.interval_s)
    return found


def _uma(setting: Setting, site: int, speed_mps: float, count: int) -> tuple[Any, Any]:
    import torch
    from sionna.phy.channel.tr38901 import UMa

    del site
    model = UMa(
        carrier_frequency=setting.carrier_hz,
        o2i_model="low",
        ut_array=_array(setting, 1),
        bs_array=_array(setting, setting.ports),
        direction="uplink",
        enable_pathloss=False,
        enable_shadow_fading=False,
        device="cpu",
    )
    drawn = np.random.default_rng([setting.seed, count, int(speed_mps * 1000)])
    radius, angle = drawn.uniform(*_RADII_M, count), drawn.uniform(-_ANGLE, _ANGLE, count)
    x, y = _CENTRE_M + radius * np.cos(angle), radius * np.sin(angle)
    heading = drawn.uniform(0, 2 * math.pi, count)
    zero = np.zeros(count)
    terminals = np.stack([x, y, np.full(count, _TERMINAL_M)], 1)[:, None]
    stations = np.stack([zero, zero, np.full(count, _BASE_STATION_M)], 1)[:, None]
    moves = speed_mps * np.stack([np.cos(heading), np.sin(heading), zero], 1)[:, None]
    turned = np.stack([zero, np.full(count, _TILT), zero], 1)[:, None]
    tensors = (torch.tensor(a, dtype=torch.float32) for a in (terminals, stations, turned, moves))
    ut, bs, bs_turned, velocities = tensors
    model.set_topology(
        ut_loc=ut,
        bs_loc=bs,
        ut_orientations=torch.zeros_like(ut),
        bs_orientations=bs_turned,
        ut_velocities=velocities,
        in_state=torch.zeros(count, 1, dtype=torch.bool),
        los=False,
    )
    found: tuple[Any, Any] = model(setting.steps, 1 / setting.interval_s)
    return found


def stacked(groups: Sequence[Drawn], seed: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file, records shuffled.

    Returns
    -------
    dict of ndarray
        ``channel``, float16, shape (records, ports, steps, 2, subcarriers): real and imaginary
        parts; ``site`` and ``speed_kmh``, one for each record.
    """
    channel = np.concatenate([group.channel for group in groups])
    parts = np.stack([channel.real, channel.imag], axis=3).astype(np.float16)
    site = np.concatenate([np.full(len(g.channel), g.site, np.int16) for g in groups])
    speed = np.concatenate([np.full(len(g.channel), g.speed_kmh, np.float32) for g in groups])
    order = np.random.default_rng(seed).permutation(len(site))
    return {"channel": parts[order], "site": site[order], "speed_kmh": speed[order]}
