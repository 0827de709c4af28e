"""Gaussian noise that nobody but the client can predict.

Each upload takes a fresh 256-bit key from the operating system (``os.urandom``) for a ChaCha20 key
stream, whose 64-bit words Box and Muller's transform turns into Gaussians in float64. The key is
dropped with the upload: it is neither derived from the run's seed nor stored, and a forked process
shares none of it. The radius has 64 random bits, so the largest number is sqrt(2 * 64 * ln 2) = 9.4
and what lies beyond has a probability below 2^-63. torch's and NumPy's own generators are not used
because their state can be recovered from their output (Mersenne Twister) or is not meant to resist
that.
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

_BLOCK = 1 << 14  # numbers at a time, which a core's cache holds; even


class NoiseSource(ABC):
    """Where an upload's noise comes from.

    Attributes
    ----------
    secret
        Whether nobody else can compute it; without that there is no privacy.
    """

    secret: bool

    @abstractmethod
    def standard_normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Return independent standard Gaussians in float64 on the CPU.

        Parameters
        ----------
        shape
            Shape of the result.
        """


class KeyStreamNoise(NoiseSource):
    """Gaussians from a ChaCha20 key stream, with a key of its own for each call."""

    @abstractmethod
    def _key(self) -> bytes:
        """Return 32 bytes that no other call returns."""

    def draw_key(self) -> bytes:
        """Return a key that makes noise again whenever it is needed; see ``KeyedNoise``."""
        return self._key()

    def standard_normal(self, shape: Sequence[int]) -> torch.Tensor:
        """See ``NoiseSource``."""
        count = math.prod(shape)
        noise = torch.empty(count + count % 2, dtype=torch.float64)
        stream = Cipher(algorithms.ChaCha20(self._key(), bytes(16)), mode=None).encryptor()
        for start in range(0, len(noise), _BLOCK):
            block = noise[start : start + _BLOCK]
            _box_muller(stream.update(bytes(8 * len(block))), block)
        return noise[:count].view(*shape)


class SystemNoise(KeyStreamNoise):
    """Keys from the operating system's generator."""

    secret = True

    def _key(self) -> bytes:
        return os.urandom(32)


class InsecureNoise(KeyStreamNoise):
    """Keys that follow from a seed, for simulations that must repeat; protects nobody.

    Parameters
    ----------
    seed
        ``privacy.insecure_noise_seed``.
    client
        Client whose noise it is.
    """

    secret = False

    def __init__(self, seed: int, client: str) -> None:
        self._seed, self._client, self._uploads = seed, client, 0

    def _key(self) -> bytes:
        self._uploads += 1
        name = f"{self._seed}/{self._uploads}/{self._client}"
        return hashlib.sha256(name.encode()).digest()


class KeyedNoise(KeyStreamNoise):
    """Noise that was drawn before, made once more: each call returns the same numbers.

    Parameters
    ----------
    key
        From ``draw_key`` of the source that it is of.
    """

    secret = True

    def __init__(self, key: bytes) -> None:
        self._kept = key

    def _key(self) -> bytes:
        return self._kept


def _box_muller(key_stream: bytes, out: torch.Tensor) -> None:
    """Fill ``out``, of even length, with Gaussians from 8 random bytes each."""
    uniform = torch.from_numpy(np.frombuffer(key_stream, dtype="<u8").astype(np.float64))
    radius, angle = uniform.mul_(2.0**-64).chunk(2)
    # the smallest word stands for 2^-64, so that the logarithm is finite
    radius.clamp_(min=2.0**-64).log_().mul_(-2.0).sqrt_()
    cosine, sine = out.chunk(2)
    torch.cos(angle.mul_(2 * math.pi), out=cosine)
    torch.sin(angle, out=sine)
    cosine.mul_(radius)
    sine.mul_(radius)
