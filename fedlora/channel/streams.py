"""Independent random streams that can be entered anywhere.

A draw depends on the run's seed, on what it is for and on indices such as client and fading block,
never on what was drawn before. So a resumed run meets the same fading as an uninterrupted one, and
one client's fading does not depend on how many clients there are.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random stream is for."""

    MEAN_SNR = 0
    BANDWIDTH = 1
    DOWN_FADING = 2
    UP_FADING = 3
    LINE_OF_SIGHT = 4
    REPORT = 5
    PLACE = 6
    SHADOWING = 7
    SCENE = 8
    SCHEDULE = 9
    MEASUREMENT = 10


def stream(seed: int, purpose: Stream, *indices: int) -> np.random.Generator:
    """Return the generator of one purpose and one tuple of indices (all 0 or more)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *indices)))
