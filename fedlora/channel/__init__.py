"""Simulated and measured radio channels, and what they deliver."""

from fedlora.channel.channel import build_channel
from fedlora.channel.ledger import AirLedger, AirRow
from fedlora.channel.state import ChannelState

__all__ = [
    "AirLedger",
    "AirRow",
    "ChannelState",
    "build_channel",
]
