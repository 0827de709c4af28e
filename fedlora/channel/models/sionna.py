"""The channels of 3GPP TR 38.901, through Sionna (the extra ``fedlora[sionna]``).

Each client has its own realisation, seeded from the run's seed and the client. It evolves over time
by its Doppler shifts; Sionna is asked for two samples, at time 0 and at the block's start, so that
any block can be had without the ones before it. The band is frequency-selective: the SNR is that of
the flat channel of the same capacity.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.models.log_distance import budget_snr_db
from fedlora.channel.rate import Shannon
from fedlora.channel.streams import Stream, stream
from fedlora.checks import choice, number, truth
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError

_SUBCARRIERS = 64
_BASE_STATION_HEIGHT_M = {"UMi": 10.0, "UMa": 25.0}  # TR 38.901 Table 7.2-1
_TERMINAL_HEIGHT_M = 1.5
_CLOSEST_M = {"UMi": 10.0, "UMa": 35.0}  # TR 38.901 Table 7.2-1
_SPREADS_S = 1e-12, 1.0
_TDL_PROFILES = ("A", "B", "C", "D", "E", "A10", "A30", "B100", "C60", "C300", "D10", "D30")


class SionnaChannel(ChannelModel):
    """What the four models share: the library, its random state, and the wide band.

    Parameters
    ----------
    config, seed
        See ``ChannelModel``.
    carrier_hz
        Carrier frequency in Hz, from 0.5 to 100 GHz.
    speed_mps
        Speed of the clients in metres per second; at 0 a client's channel never changes.
    """

    def __init__(
        self, config: ChannelConfig, seed: int, *, carrier_hz: float, speed_mps: float
    ) -> None:
        super().__init__(config, seed)
        self.carrier_hz = number("channel.options.carrier_hz", carrier_hz, 0.5e9, 100e9)
        self.speed_mps = number("channel.options.speed_mps", speed_mps, 0.0, 3e8)
        with own_randomness():
            try:
                from sionna.phy.channel import tr38901
            except ImportError as error:
                raise FedloraError(
                    f"channel.model {config.model} needs Sionna ({error}); "
                    "pip install 'fedlora[sionna]'"
                ) from None
        self._tr38901: Any = tr38901

    @abstractmethod
    def _generate(self, client: int, samples: int, sampling_hz: float) -> tuple[Any, Any]:
        """Return Sionna's path coefficients and delays, freshly seeded."""

    def paths(self, client: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the channel impulse response at the start of a block.

        Returns
        -------
        coefficients, delays_s
            Complex amplitudes and delays in seconds, each of shape (paths,).
        """
        from sionna.phy import config as sionna_config

        with own_randomness():
            sionna_config.seed = int(stream(self.seed, Stream.SCENE, client).integers(2**63))
            time_s = self.time_s(block)
            samples, sampling_hz = (2, 1 / time_s) if block else (1, 1.0)
            coefficients, delays_s = self._generate(client, samples, sampling_hz)
        return (
            coefficients[..., -1].reshape(-1).cpu().numpy(),
            delays_s.reshape(-1).cpu().numpy(),
        )

    def power_gains(self, client: int, block: int, bandwidth_hz: float) -> np.ndarray:
        """Return the power gain at 64 equally spaced frequencies of the band, of shape (64,)."""
        coefficients, delays_s = self.paths(client, block)
        offsets_hz = ((np.arange(_SUBCARRIERS) + 0.5) / _SUBCARRIERS - 0.5) * bandwidth_hz
        turns = np.exp(-2j * math.pi * offsets_hz[:, None] * delays_s)
        return np.asarray(np.abs(turns @ coefficients) ** 2)

    def _array(self) -> Any:
        """Return one vertically polarised antenna that radiates equally in all directions."""
        return self._tr38901.PanelArray(
            num_rows_per_panel=1,
            num_cols_per_panel=1,
            polarization="single",
            polarization_type="V",
            antenna_pattern="omni",
            carrier_frequency=self.carrier_hz,
            precision="double",
            device="cpu",
        )


class TdlChannel(SionnaChannel):
    """Tapped delay line (TR 38.901 section 7.7.2) around the scenario's mean SNR.

    Parameters
    ----------
    config, seed, carrier_hz, speed_mps
        See ``SionnaChannel``.
    profile
        ``A`` to ``E``, or a profile of TS 38.101-4 such as ``A30``.
    delay_spread_s
        RMS delay spread in seconds, for ``A`` to ``E``.
    """

    def __init__(
        self,
        config: ChannelConfig,
        seed: int,
        *,
        profile: str = "A",
        delay_spread_s: float = 100e-9,
        carrier_hz: float = 3.5e9,
        speed_mps: float = 1.0,
    ) -> None:
        super().__init__(config, seed, carrier_hz=carrier_hz, speed_mps=speed_mps)
        choice("channel.options.profile", profile, _TDL_PROFILES)
        number("channel.options.delay_spread_s", delay_spread_s, *_SPREADS_S)
        self._model = self._tr38901.TDL(
            model=profile,
            # Fixed profiles carry their own delay spread.
            delay_spread=delay_spread_s if len(profile) == 1 else None,
            carrier_frequency=carrier_hz,
            min_speed=speed_mps,
            precision="double",
            device="cpu",
        )

    def sample(self, client: int, block: int) -> Link:
        """Return the link of a client in a fading block."""
        return _selective(self, client, block)

    def _generate(self, client: int, samples: int, sampling_hz: float) -> tuple[Any, Any]:
        del client
        coefficients, delays_s = self._model(1, samples, sampling_hz)
        return coefficients, delays_s


class CdlChannel(SionnaChannel):
    """Clustered delay line (TR 38.901 section 7.7.1) around the scenario's mean SNR.

    Parameters
    ----------
    config, seed, carrier_hz, speed_mps
        See ``SionnaChannel``.
    profile
        ``A`` to ``E``.
    delay_spread_s
        RMS delay spread in seconds.
    """

    def __init__(
        self,
        config: ChannelConfig,
        seed: int,
        *,
        profile: str = "A",
        delay_spread_s: float = 100e-9,
        carrier_hz: float = 3.5e9,
        speed_mps: float = 1.0,
    ) -> None:
        super().__init__(config, seed, carrier_hz=carrier_hz, speed_mps=speed_mps)
        self._model = self._tr38901.CDL(
            model=choice("channel.options.profile", profile, "ABCDE"),
            delay_spread=number("channel.options.delay_spread_s", delay_spread_s, *_SPREADS_S),
            carrier_frequency=carrier_hz,
            ut_array=self._array(),
            bs_array=self._array(),
            direction="downlink",
            min_speed=speed_mps,
            max_speed=speed_mps,
            precision="double",
            device="cpu",
        )

    def sample(self, client: int, block: int) -> Link:
        """Return the link of a client in a fading block."""
        return _selective(self, client, block)

    def _generate(self, client: int, samples: int, sampling_hz: float) -> tuple[Any, Any]:
        del client
        coefficients, delays_s = self._model(1, samples, sampling_hz)
        return coefficients, delays_s


class UmiChannel(SionnaChannel):
    """Urban microcell, street canyon (TR 38.901 section 7.2), with a link budget of its own.

    Each client stands at a random place in the cell and moves in a random direction fast enough to
    turn phases, not to change place. Path loss, shadowing and line of sight are those of the
    standard; SNR follows from the transmit powers, not from ``snr_db``.

    Parameters
    ----------
    config, seed, carrier_hz, speed_mps
        See ``SionnaChannel``.
    cell_radius_m
        Largest distance from the base station, in metres.
    indoor
        Whether the clients are in buildings of low penetration loss.
    noise_figure_db
        Noise figure of the receivers, in dB.
    """

    scenario = "UMi"

    def __init__(
        self,
        config: ChannelConfig,
        seed: int,
        *,
        cell_radius_m: float = 100.0,
        indoor: bool = False,
        noise_figure_db: float = 7.0,
        carrier_hz: float = 3.5e9,
        speed_mps: float = 1.0,
    ) -> None:
        super().__init__(config, seed, carrier_hz=carrier_hz, speed_mps=speed_mps)
        self._radius_m = number(
            "channel.options.cell_radius_m", cell_radius_m, _CLOSEST_M[self.scenario], 1e6
        )
        self._noise_figure_db = number(
            "channel.options.noise_figure_db", noise_figure_db, -100.0, 100.0
        )
        self._indoor = truth("channel.options.indoor", indoor)
        self._antenna = self._array()

    def sample(self, client: int, block: int) -> Link:
        """Return the link of a client in a fading block."""
        bandwidth_hz = self.bandwidth_hz(client, block)
        gains_db = 10 * np.log10(self.power_gains(client, block, bandwidth_hz))
        up_db, down_db = (
            _effective_snr_db(
                budget_snr_db(power_w, 0.0, bandwidth_hz, self._noise_figure_db) + gains_db
            )
            for power_w in (self.config.up_power_w, self.config.down_power_w)
        )
        return Link(up_db, down_db, bandwidth_hz)

    def _generate(self, client: int, samples: int, sampling_hz: float) -> tuple[Any, Any]:
        import torch

        def row(*values: float) -> Any:
            return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 3)

        rng = stream(self.seed, Stream.PLACE, client)
        # The square root makes places uniform over the disc.
        closest = _CLOSEST_M[self.scenario] / self._radius_m
        distance_m = self._radius_m * math.sqrt(rng.uniform(closest**2, 1.0))
        bearing, heading = rng.uniform(0, 2 * math.pi, 2)
        # A new object each time: its first topology draws otherwise than its later ones.
        model = getattr(self._tr38901, self.scenario)(
            carrier_frequency=self.carrier_hz,
            o2i_model="low",
            ut_array=self._antenna,
            bs_array=self._antenna,
            direction="downlink",
            precision="double",
            device="cpu",
        )
        model.set_topology(
            ut_loc=row(
                distance_m * math.cos(bearing), distance_m * math.sin(bearing), _TERMINAL_HEIGHT_M
            ),
            bs_loc=row(0.0, 0.0, _BASE_STATION_HEIGHT_M[self.scenario]),
            ut_orientations=row(0.0, 0.0, 0.0),
            bs_orientations=row(0.0, 0.0, 0.0),
            ut_velocities=row(
                self.speed_mps * math.cos(heading), self.speed_mps * math.sin(heading), 0.0
            ),
            in_state=torch.full((1, 1), self._indoor),
        )
        coefficients, delays_s = model(samples, sampling_hz)
        return coefficients, delays_s


class UmaChannel(UmiChannel):
    """Urban macrocell (TR 38.901 section 7.2); see ``UmiChannel``."""

    scenario = "UMa"


def _selective(model: SionnaChannel, client: int, block: int) -> Link:
    """Return the link of a channel of unit mean power around the scenario's mean SNR."""
    bandwidth_hz = model.bandwidth_hz(client, block)
    gains_db = 10 * np.log10(model.power_gains(client, block, bandwidth_hz))
    mean_db = model.mean_snr_db(client, block)
    return Link(
        _effective_snr_db(mean_db + model.config.up_snr_offset_db + gains_db),
        _effective_snr_db(mean_db + gains_db),
        bandwidth_hz,
    )


def _effective_snr_db(snr_db: np.ndarray) -> float:
    """Return the SNR of the flat channel that has the capacity of a selective one, in dB."""
    capacity = Shannon()
    return capacity.snr_db(float(np.mean([capacity.rate_bps(x, 1.0) for x in snr_db])), 1.0)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Keep Sionna, which seeds torch's global generators, from disturbing the run's."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
