"""Moved to ``fedlora.robust.base`` and ``fedlora.robust.aggregation``; here for one release."""

import warnings

from fedlora.robust.aggregation import create_average, protect, robust_mean
from fedlora.robust.base import Block, RobustAverage, masked_median, typical_squares

__all__ = [
    "Block",
    "RobustAverage",
    "create_average",
    "masked_median",
    "protect",
    "robust_mean",
    "typical_squares",
]

warnings.warn(
    "fedlora.robust.average is now fedlora.robust.base; the old name goes with release 0.3",
    DeprecationWarning,
    stacklevel=2,
)
