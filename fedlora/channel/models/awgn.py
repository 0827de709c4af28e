"""A channel without fading."""

from __future__ import annotations

from fedlora.channel.models.base import ChannelModel, Link


class AwgnChannel(ChannelModel):
    """White noise alone: the SNR and bandwidth are those that the scenario lists.

    With several entries and ``draw = "round"`` it is the channel of AirLLM's released code: SNR and
    bandwidth drawn independently and uniformly from the lists.
    """

    def sample(self, client: int, block: int) -> Link:
        """Return the link of a client in a fading block."""
        return self.mean_link(client, block)
