"""Moved to ``fedlora.checks``; here for one release."""

import warnings

from fedlora.checks import bandwidth, choice, number, positive

__all__ = ["bandwidth", "choice", "number", "positive"]

warnings.warn(
    "fedlora.channel.checks is now fedlora.checks; the old name goes with release 0.3",
    DeprecationWarning,
    stacklevel=2,
)
