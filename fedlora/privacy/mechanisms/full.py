"""``full``: the gradient at the cut in all its dimensions, clipped and noised there."""

from __future__ import annotations

from fedlora.privacy.mechanisms.base import Mechanism


class Full(Mechanism):
    """The Gaussian mechanism on each sample's gradient; any head but ``share = "round"``."""
