"""What every channel model has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from fedlora.channel.streams import Stream, stream
from fedlora.config import ChannelConfig


@dataclass(frozen=True)
class Link:
    """A client's link during one fading block.

    Attributes
    ----------
    up_snr_db, down_snr_db
        SNR over the bandwidth, in dB; ``None`` where only a rate was measured.
    bandwidth_hz
        Bandwidth of the client's share, in Hz.
    up_rate_bps, down_rate_bps
        Measured rates in bit/s, where the rate does not follow from the SNR.
    """

    up_snr_db: float | None
    down_snr_db: float | None
    bandwidth_hz: float
    up_rate_bps: float | None = None
    down_rate_bps: float | None = None


class ChannelModel(ABC):
    """A channel model: a function of the seed, the client and the fading block.

    A model is built as ``Model(config, seed, **config.options)``. ``sample`` must not depend on
    what was sampled before, so that a resumed run sees the same channel; draws come from
    ``stream``.

    Parameters
    ----------
    config
        The scenario's channel section.
    seed
        The run's seed, 0 or more.
    """

    def __init__(self, config: ChannelConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    @abstractmethod
    def sample(self, client: int, block: int) -> Link:
        """Return the link of a client in a fading block.

        Parameters
        ----------
        client
            Index of the client, from 0.
        block
            Index of the fading block, from 0; it starts ``time_s(block)`` after the run does.
        """

    def time_s(self, block: int) -> float:
        """Return when a fading block starts, in seconds."""
        return block * self.config.block_s

    def mean_snr_db(self, client: int, block: int) -> float:
        """Return the mean downlink SNR that the scenario sets, in dB."""
        return self._entry(self.config.snr_db, Stream.MEAN_SNR, client, block)

    def bandwidth_hz(self, client: int, block: int) -> float:
        """Return the bandwidth that the scenario sets, in Hz."""
        return self._entry(self.config.bandwidth_hz, Stream.BANDWIDTH, client, block)

    def mean_link(
        self, client: int, block: int, up_gain_db: float = 0.0, down_gain_db: float = 0.0
    ) -> Link:
        """Return the link at the scenario's mean SNR and bandwidth, with a gain on top, in dB."""
        mean_db = self.mean_snr_db(client, block)
        return Link(
            mean_db + self.config.up_snr_offset_db + up_gain_db,
            mean_db + down_gain_db,
            self.bandwidth_hz(client, block),
        )

    def _entry(
        self,
        values: tuple[float, ...],
        purpose: Literal[Stream.MEAN_SNR, Stream.BANDWIDTH],
        client: int,
        block: int,
    ) -> float:
        if self.config.draw == "client":
            return values[client % len(values)]
        if len(values) == 1:
            return values[0]
        round = block // self.config.blocks_per_round
        return values[stream(self.seed, purpose, client, round).integers(len(values))]
