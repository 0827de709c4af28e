"""Path loss over distance, shadowing and moving clients, on top of small-scale fading."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.models.fading import SmallScaleFading
from fedlora.channel.models.mobility import Linear, Mobility, RandomWaypoint
from fedlora.channel.streams import Stream, stream
from fedlora.checks import choice, number, positive
from fedlora.config import ChannelConfig

SPEED_OF_LIGHT_MPS = 299_792_458.0
THERMAL_NOISE_DBM_PER_HZ = -174.0
_WAVES = 512
_LENGTHS_M = 1e-3, 1e9
_REMEMBERED = 4096  # places of clients
_MOST_CROSSINGS = 100  # of a cell in a fading block
_CARRIERS_HZ = 1e3, 1e15
_FREE_SPACE = 2.0


def budget_snr_db(
    power_w: float, loss_db: float, bandwidth_hz: float, noise_figure_db: float
) -> float:
    """Return the SNR of a link budget over thermal noise at 290 K, in dB.

    Parameters
    ----------
    power_w
        Transmit power in watts.
    loss_db
        Loss between the antennas, fading included, in dB.
    bandwidth_hz
        Bandwidth that the power is spread over, in Hz.
    noise_figure_db
        Noise figure of the receiver, in dB.
    """
    noise_dbm = THERMAL_NOISE_DBM_PER_HZ + 10 * math.log10(bandwidth_hz) + noise_figure_db
    return 10 * math.log10(power_w) + 30 - loss_db - noise_dbm


class ShadowMap:
    """Log-normal shadowing that belongs to places, with exponentially falling correlation.

    A Gaussian field over the plane with autocorrelation ``exp(-d / d_c)`` (Gudmundson, Electronics
    Letters 27(23), 1991), as a sum of 512 plane waves drawn from its spectrum (Cai and Giannakis,
    IEEE Trans. Veh. Technol. 52(6), 2003). Clients who pass the same place meet the same shadow.

    Parameters
    ----------
    seed
        The run's seed.
    deviation_db
        Standard deviation in dB.
    decorrelation_m
        Distance ``d_c`` at which the correlation has fallen to 1/e, in metres.
    """

    def __init__(self, seed: int, deviation_db: float, decorrelation_m: float) -> None:
        rng = stream(seed, Stream.SHADOWING)
        # The spectrum of exp(-d/d_c) in two dimensions has the cumulative distribution
        # 1 - 1/sqrt(1 + (k d_c)^2) over the wave number k, which is inverted here.
        wave_numbers = np.sqrt(1 / (1 - rng.random(_WAVES)) ** 2 - 1) / decorrelation_m
        headings = rng.uniform(0, 2 * math.pi, _WAVES)
        self._waves = wave_numbers * np.stack([np.cos(headings), np.sin(headings)])
        self._phases = rng.uniform(0, 2 * math.pi, _WAVES)
        self._amplitude_db = deviation_db * math.sqrt(2 / _WAVES)

    def loss_db(self, position_m: np.ndarray) -> float:
        """Return the loss at an (x, y) position in metres, in dB."""
        return float(self._amplitude_db * np.cos(position_m @ self._waves + self._phases).sum())


class LogDistanceChannel(ChannelModel):
    """Link budget with log-distance path loss, correlated shadowing and moving clients.

    The loss is that of free space up to ``reference_m`` (Friis: 20 dB a decade, 0 dB at a distance
    of wavelength / 4 pi and less) and rises by ``10 exponent`` dB a decade beyond it. SNR follows
    from the transmit powers, not from ``snr_db``.

    Parameters
    ----------
    config, seed
        See ``ChannelModel``.
    exponent
        Path-loss exponent.
    reference_m
        Reference distance in metres.
    carrier_hz
        Carrier frequency in Hz.
    noise_figure_db
        Noise figure of the receivers, in dB.
    shadowing_db, decorrelation_m
        See ``ShadowMap``.
    cell_radius_m
        Half the side of the square cell, in metres; the server's antenna is at its centre.
    mobility
        ``static``, ``linear`` or ``waypoint``.
    speed_mps
        Speed of a client in metres per second, for ``linear`` and ``waypoint``.
    small_scale
        ``none``, ``rayleigh`` or ``rician``.
    k_factor_db, correlation, ar1_coefficient, duplex
        See ``SmallScaleFading``; the Doppler shift follows from speed and carrier.
    """

    def __init__(
        self,
        config: ChannelConfig,
        seed: int,
        *,
        exponent: float = 3.5,
        reference_m: float = 1.0,
        carrier_hz: float = 3.5e9,
        noise_figure_db: float = 7.0,
        shadowing_db: float = 6.0,
        decorrelation_m: float = 50.0,
        cell_radius_m: float = 300.0,
        mobility: str = "static",
        speed_mps: float = 1.0,
        small_scale: str = "rayleigh",
        k_factor_db: float = 6.0,
        correlation: str = "none",
        ar1_coefficient: float | None = None,
        duplex: str = "tdd",
    ) -> None:
        super().__init__(config, seed)
        option = "channel.options."
        self._exponent = number(option + "exponent", exponent, 0.1, 20.0)
        self._reference_m = number(option + "reference_m", reference_m, *_LENGTHS_M)
        self._noise_figure_db = number(option + "noise_figure_db", noise_figure_db, -100.0, 100.0)
        carrier_hz = number(option + "carrier_hz", carrier_hz, *_CARRIERS_HZ)
        no_loss_m = SPEED_OF_LIGHT_MPS / (4 * math.pi * carrier_hz)
        self._nearest_m = min(no_loss_m, self._reference_m)
        self._reference_loss_db = 20 * math.log10(self._reference_m / no_loss_m)
        self.shadowing = ShadowMap(
            seed,
            number(option + "shadowing_db", shadowing_db, 0.0, 100.0),
            number(option + "decorrelation_m", decorrelation_m, *_LENGTHS_M),
        )
        # Faster, a client would cross its cell many times within a fading block.
        radius_m = number(option + "cell_radius_m", cell_radius_m, *_LENGTHS_M)
        most_mps = min(_MOST_CROSSINGS * radius_m / config.block_s, 3e8)
        self.mobility = _mobility(
            choice(option + "mobility", mobility, ("static", "linear", "waypoint")),
            seed,
            cell_radius_m,
            number(option + "speed_mps", positive(option + "speed_mps", speed_mps), high=most_mps),
        )
        self._rests = mobility == "static"
        self._loss_db = lru_cache(maxsize=_REMEMBERED)(self._place_loss_db)
        choice(option + "small_scale", small_scale, ("none", "rayleigh", "rician"))
        self._fading = None
        if small_scale != "none":
            self._fading = SmallScaleFading(
                seed,
                config.block_s,
                k_factor_db=k_factor_db if small_scale == "rician" else None,
                correlation=correlation,
                doppler_hz=speed_mps * carrier_hz / SPEED_OF_LIGHT_MPS,
                ar1_coefficient=ar1_coefficient,
                duplex=duplex,
            )

    def path_loss_db(self, distance_m: float) -> float:
        """Return the mean loss at a distance from the antenna, in dB."""
        distance = max(distance_m, self._nearest_m) / self._reference_m
        exponent = self._exponent if distance > 1.0 else _FREE_SPACE
        return self._reference_loss_db + 10 * exponent * math.log10(distance)

    def _place_loss_db(self, client: int, time_s: float) -> float:
        """Return the loss where a client is, in dB."""
        position_m = self.mobility.position_m(client, time_s)
        distance_m = float(np.linalg.norm(position_m))
        return self.path_loss_db(distance_m) + self.shadowing.loss_db(position_m)

    def sample(self, client: int, block: int) -> Link:
        """Return the link of a client in a fading block."""
        loss_db = self._loss_db(client, 0.0 if self._rests else self.time_s(block))
        gains_db = self._fading.gain_db(client, block) if self._fading else (0.0, 0.0)
        bandwidth_hz = self.bandwidth_hz(client, block)
        up_db, down_db = (
            budget_snr_db(power_w, loss_db - gain_db, bandwidth_hz, self._noise_figure_db)
            for power_w, gain_db in zip(
                (self.config.up_power_w, self.config.down_power_w), gains_db, strict=True
            )
        )
        return Link(up_db, down_db, bandwidth_hz)


def _mobility(kind: str, seed: int, half_side_m: float, speed_mps: float) -> Mobility:
    if kind == "waypoint":
        return RandomWaypoint(seed, half_side_m, speed_mps)
    return Linear(seed, half_side_m, speed_mps if kind == "linear" else 0.0)
