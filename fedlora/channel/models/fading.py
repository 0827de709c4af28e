"""Small-scale fading of a narrow band: Rayleigh and Rician, with correlation over time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.streams import Stream, stream
from fedlora.checks import choice, number, positive
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError

Scatter = Callable[[Stream, int, int], complex]
"""Complex gain of unit mean power, by random stream, client and fading block."""

_SINUSOIDS = 128
_CHUNK_BLOCKS = 4096
_SMALLEST_POWER = 1e-30  # -300 dB: keeps a logarithm finite where rays cancel to the last bit


class IndependentScatter:
    """Complex Gaussian gains that are independent from block to block."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, purpose: Stream, client: int, block: int) -> complex:
        """Return the gain of one block."""
        real, imaginary = stream(self._seed, purpose, client, block).normal(size=2)
        return complex(real, imaginary) / math.sqrt(2)


class JakesScatter:
    """Sum of sinusoids whose autocorrelation is ``J0(2 pi f_d t)``.

    Rays of equal power arrive at one angle drawn from each of 128 equal sectors, with random phases
    (Clarke's model; Zheng and Xiao, IEEE Trans. Commun. 51(6), 2003, draw the angles likewise). The
    expected autocorrelation is exact, and the mean power over time is 1 for every client.

    Parameters
    ----------
    seed
        The run's seed.
    doppler_hz
        Largest Doppler shift, in Hz.
    block_s
        Duration of a fading block, in seconds.
    """

    def __init__(self, seed: int, doppler_hz: float, block_s: float) -> None:
        self._seed = seed
        self._radians_per_block = 2 * math.pi * doppler_hz * block_s
        self._rays: dict[tuple[Stream, int], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, purpose: Stream, client: int, block: int) -> complex:
        """Return the gain of one block."""
        if (purpose, client) not in self._rays:
            rng = stream(self._seed, purpose, client)
            angles = 2 * math.pi * (np.arange(_SINUSOIDS) + rng.random(_SINUSOIDS)) / _SINUSOIDS
            self._rays[purpose, client] = np.cos(angles), rng.uniform(0, 2 * math.pi, _SINUSOIDS)
        cosines, phases = self._rays[purpose, client]
        rays = np.exp(1j * (self._radians_per_block * block * cosines + phases))
        return complex(rays.sum()) / math.sqrt(_SINUSOIDS)


class AutoregressiveScatter:
    """First-order autoregression ``h[b] = a h[b-1] + sqrt(1 - a^2) w[b]``, stationary from block 0.

    Innovations come from one stream for every 4096 blocks, so that a block's gain is the same
    whichever blocks were asked for before; the chunk in use is kept.
    """

    def __init__(self, seed: int, coefficient: float) -> None:
        self._seed = seed
        self._coefficient = coefficient
        self._chunks: dict[tuple[Stream, int], tuple[int, np.ndarray]] = {}

    def __call__(self, purpose: Stream, client: int, block: int) -> complex:
        """Return the gain of one block."""
        wanted, offset = divmod(block, _CHUNK_BLOCKS)
        kept, gains = self._chunks.get((purpose, client), (-1, np.zeros(1)))
        if kept > wanted:
            kept = -1
        while kept < wanted:
            kept += 1
            gains = self._chunk(purpose, client, kept, complex(gains[-1]))
        self._chunks[purpose, client] = kept, gains
        return complex(gains[offset])

    def _chunk(self, purpose: Stream, client: int, index: int, before: complex) -> np.ndarray:
        from scipy.signal import lfilter  # a second, in each process of a run

        draws = stream(self._seed, purpose, client, index).normal(size=(2, _CHUNK_BLOCKS))
        innovations = (draws[0] + 1j * draws[1]) / math.sqrt(2)
        innovations[0 if index else 1 :] *= math.sqrt(1 - self._coefficient**2)
        carried = np.array([self._coefficient * before]) if index else np.zeros(1)
        gains, _ = lfilter([1.0], [1.0, -self._coefficient], innovations, zi=carried)
        return np.asarray(gains)


class SmallScaleFading:
    """Power gain of Rayleigh or Rician block fading in both directions.

    Parameters
    ----------
    seed
        The run's seed.
    block_s
        Duration of a fading block, in seconds.
    k_factor_db
        Power of the line of sight over that of the scattered rays, in dB; ``None`` for Rayleigh.
    correlation
        Between blocks: ``none``, ``jakes`` or ``ar1``.
    doppler_hz
        Largest Doppler shift in Hz, for ``jakes`` and, without ``ar1_coefficient``, for ``ar1``.
    ar1_coefficient
        Correlation of neighbouring blocks for ``ar1``; by default ``J0(2 pi f_d T)``, which is that
        of Jakes' spectrum.
    duplex
        ``tdd``: one fading for both directions; ``fdd``: independent ones.
    """

    def __init__(
        self,
        seed: int,
        block_s: float,
        *,
        k_factor_db: float | None = None,
        correlation: str = "none",
        doppler_hz: float = 0.0,
        ar1_coefficient: float | None = None,
        duplex: str = "tdd",
    ) -> None:
        choice("channel.options.correlation", correlation, ("none", "jakes", "ar1"))
        choice("channel.options.duplex", duplex, ("tdd", "fdd"))
        number("channel.options.doppler_hz", doppler_hz, 0.0, 1e15)
        self._seed = seed
        self._reciprocal = duplex == "tdd"
        self._k_factor = 0.0
        if k_factor_db is not None:
            k_factor_db = number("channel.options.k_factor_db", k_factor_db, -100, 100)
            self._k_factor = 10 ** (k_factor_db / 10)
        self._direct_turn = 2 * math.pi * block_s * (doppler_hz if correlation == "jakes" else 0.0)
        self._scatter = _scatter(seed, block_s, correlation, doppler_hz, ar1_coefficient)

    def gain_db(self, client: int, block: int) -> tuple[float, float]:
        """Return the uplink and the downlink power gain of a block, in dB."""
        down = self._power_db(Stream.DOWN_FADING, client, block)
        up = down if self._reciprocal else self._power_db(Stream.UP_FADING, client, block)
        return up, down

    def envelope(self, purpose: Stream, client: int, block: int) -> complex:
        """Return the complex gain of a block; its mean power is 1."""
        scattered = self._scatter(purpose, client, block)
        if not self._k_factor:
            return scattered
        phase, angle = stream(self._seed, Stream.LINE_OF_SIGHT, client, purpose).uniform(
            0, 2 * math.pi, 2
        )
        direct = np.exp(1j * (phase + self._direct_turn * block * math.cos(angle)))
        gain = math.sqrt(self._k_factor) * direct + scattered
        return complex(gain) / math.sqrt(self._k_factor + 1)

    def _power_db(self, purpose: Stream, client: int, block: int) -> float:
        power = abs(self.envelope(purpose, client, block)) ** 2
        return 10 * math.log10(max(power, _SMALLEST_POWER))


def _scatter(
    seed: int, block_s: float, correlation: str, doppler_hz: float, ar1_coefficient: float | None
) -> Scatter:
    if correlation == "none":
        return IndependentScatter(seed)
    if correlation == "jakes":
        positive("channel.options.doppler_hz (needed by correlation jakes)", doppler_hz)
        return JakesScatter(seed, doppler_hz, block_s)
    if ar1_coefficient is None:
        if not doppler_hz:
            raise FedloraError(
                "channel.options has neither ar1_coefficient nor doppler_hz; set one of them for "
                "correlation ar1"
            )
        from scipy.special import j0

        ar1_coefficient = float(j0(2 * math.pi * doppler_hz * block_s))
    return AutoregressiveScatter(
        seed, number("channel.options.ar1_coefficient", ar1_coefficient, -1.0, 1.0)
    )


class RicianChannel(ChannelModel):
    """Rician block fading around the scenario's mean SNR.

    Parameters
    ----------
    config, seed
        See ``ChannelModel``.
    k_factor_db, correlation, doppler_hz, ar1_coefficient, duplex
        See ``SmallScaleFading``.
    """

    def __init__(
        self,
        config: ChannelConfig,
        seed: int,
        *,
        k_factor_db: float | None = 6.0,
        correlation: str = "none",
        doppler_hz: float = 0.0,
        ar1_coefficient: float | None = None,
        duplex: str = "tdd",
    ) -> None:
        super().__init__(config, seed)
        self.fading = SmallScaleFading(
            seed,
            config.block_s,
            k_factor_db=k_factor_db,
            correlation=correlation,
            doppler_hz=doppler_hz,
            ar1_coefficient=ar1_coefficient,
            duplex=duplex,
        )

    def sample(self, client: int, block: int) -> Link:
        """Return the link of a client in a fading block."""
        return self.mean_link(client, block, *self.fading.gain_db(client, block))


class RayleighChannel(RicianChannel):
    """Rayleigh block fading around the scenario's mean SNR.

    Parameters
    ----------
    config, seed
        See ``ChannelModel``.
    correlation, doppler_hz, ar1_coefficient, duplex
        See ``SmallScaleFading``.
    """

    def __init__(
        self,
        config: ChannelConfig,
        seed: int,
        *,
        correlation: str = "none",
        doppler_hz: float = 0.0,
        ar1_coefficient: float | None = None,
        duplex: str = "tdd",
    ) -> None:
        super().__init__(
            config,
            seed,
            k_factor_db=None,
            correlation=correlation,
            doppler_hz=doppler_hz,
            ar1_coefficient=ar1_coefficient,
            duplex=duplex,
        )
