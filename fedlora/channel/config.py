"""Moved to ``fedlora.config.channel``; here for one release."""

import warnings

from fedlora.config import ChannelConfig, ReportConfig, ScheduleConfig

__all__ = ["ChannelConfig", "ReportConfig", "ScheduleConfig"]

warnings.warn(
    "fedlora.channel.config is now fedlora.config.channel; the old name goes with release 0.3",
    DeprecationWarning,
    stacklevel=2,
)
