"""Receiver noise as privacy noise, where gradients are sent without a code.

An uncoded gradient of d numbers is scaled to the transmit power, x = beta (g + n), and received as
y = h x + w (Liu and Simeone 2020, arXiv 2006.05459). With clipping norm C, artificial noise of
standard deviation a, and mean power P for each number, beta^2 = d P / (C^2 + d a^2). Divided by
h beta the server has g + n + w / (h beta), so that at the received SNR gamma = h^2 P / N0

    receiver noise r^2 = (C^2 + d a^2) / (d gamma),   s^2 = a^2 + r^2.

For a target s = sigma C the artificial noise tops the receiver's up:

    a^2 = max(0, (s^2 - C^2 / (d gamma)) / (1 + 1 / gamma)).

The bound has to hold for the best reception that anybody can have. Both a and what is charged are
therefore computed at ``privacy.analog_snr_db``, the SNR that clients with a better channel reduce
their power to; the noise that a worse channel adds is not counted. Nobody may observe the signal
from nearer than that, and the client has to know its channel. A coded link has no such noise: its
errors are corrected. This exists in simulation alone, since over gRPC the server would receive what
was sent, not what a receiver heard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedlora.privacy.mechanisms.noise import NoiseSource


@dataclass(frozen=True)
class AnalogNoise:
    """The two noises on each number of an upload, as standard deviations.

    Attributes
    ----------
    artificial
        a, which the client adds.
    receiver
        r, which the receiver adds.
    """

    artificial: float
    receiver: float

    @property
    def total(self) -> float:
        """Standard deviation of their sum."""
        return math.hypot(self.artificial, self.receiver)


def top_up(target: float, clip_norm: float, numbers: int, snr_db: float) -> AnalogNoise:
    """Return the artificial noise that tops the receiver's up to a target.

    Parameters
    ----------
    target
        Standard deviation s = sigma C that is wanted on each number.
    clip_norm
        C.
    numbers
        d, numbers of an upload.
    snr_db
        Largest SNR with which anybody receives it, in dB.
    """
    gamma = 10 ** (snr_db / 10)
    missing = target**2 - clip_norm**2 / (numbers * gamma)
    artificial = math.sqrt(max(0.0, missing / (1 + 1 / gamma)))
    return AnalogNoise(artificial, receiver_noise(artificial, clip_norm, numbers, snr_db))


def receiver_noise(artificial: float, clip_norm: float, numbers: int, snr_db: float) -> float:
    """Return the receiver's noise on each number at some SNR, as a standard deviation."""
    power = clip_norm**2 + numbers * artificial**2
    return math.sqrt(power / (numbers * 10 ** (snr_db / 10)))


class AirNoise(NoiseSource):
    """The sum of what a client and a receiver add, as one source of unit variance.

    Parameters
    ----------
    client, receiver
        Where each of the two comes from.
    parts
        How strong they are.
    """

    def __init__(self, client: NoiseSource, receiver: NoiseSource, parts: AnalogNoise) -> None:
        self.secret = client.secret and receiver.secret
        self._sources = ((client, parts.artificial), (receiver, parts.receiver))
        self._total = parts.total

    def standard_normal(self, shape: Sequence[int]) -> torch.Tensor:
        """See ``NoiseSource``."""
        noise = torch.zeros(*shape, dtype=torch.float64)
        for source, std in self._sources:
            if std > 0:
                noise.add_(source.standard_normal(shape), alpha=std / self._total)
        return noise
