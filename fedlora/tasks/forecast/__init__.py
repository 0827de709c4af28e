"""Forecasts of time series, above all of radio channels: a task whose inputs are no tokens."""

from fedlora.tasks.forecast.modules import ChannelBranch
from fedlora.tasks.forecast.recurrences import go_on, go_on_together
from fedlora.tasks.forecast.task import Forecast, front_module, head_module

__all__ = ["ChannelBranch", "Forecast", "front_module", "go_on", "go_on_together", "head_module"]
