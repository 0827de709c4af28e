"""The link as the edge measured it, for deployments."""

from __future__ import annotations

from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.rate import Shannon
from fedlora.channel.state import RATE_MAX_BPS, RATE_MIN_BPS, ChannelState
from fedlora.checks import number
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError


class MeasuredChannel(ChannelModel):
    """The last state that each client reported from its link probe.

    Parameters
    ----------
    config, seed
        See ``ChannelModel``.
    equivalent_snr
        Whether to state the SNR at which the scenario's bandwidth would have the measured rate. It
        serves strategies that look at the SNR, and is marked as derived.
    """

    def __init__(self, config: ChannelConfig, seed: int, *, equivalent_snr: bool = False) -> None:
        super().__init__(config, seed)
        self.equivalent_snr = equivalent_snr
        self._states: dict[int, ChannelState] = {}

    def state(
        self, client: int, up_rate_bps: float, down_rate_bps: float, age_s: float = 0.0
    ) -> ChannelState:
        """Return the state that stands for two measured rates, in bit/s.

        Raises
        ------
        FedloraError
            When a rate is not one that a link can have.
        """
        number("the measured uplink rate in bit/s", up_rate_bps, RATE_MIN_BPS, RATE_MAX_BPS)
        number("the measured downlink rate in bit/s", down_rate_bps, RATE_MIN_BPS, RATE_MAX_BPS)
        bandwidth_hz = self.bandwidth_hz(client, 0)
        rule = Shannon(self.config.gap_db)
        up_db = rule.snr_db(up_rate_bps, bandwidth_hz) if self.equivalent_snr else None
        down_db = rule.snr_db(down_rate_bps, bandwidth_hz) if self.equivalent_snr else None
        return ChannelState(
            up_db, down_db, bandwidth_hz, up_rate_bps, down_rate_bps, age_s, derived=True
        )

    def knows(self, client: int) -> bool:
        """Return whether the client has reported."""
        return client in self._states

    def observe(self, client: int, state: ChannelState) -> None:
        """Take the rates that a client reported; the bandwidth stays the scenario's."""
        self._states[client] = self.state(
            client, state.up_rate_bps, state.down_rate_bps, state.age_s
        )

    def sample(self, client: int, block: int) -> Link:
        """Return the link that the client reported last, whatever the block.

        Raises
        ------
        FedloraError
            When the client has not reported.
        """
        del block
        state = self._states.get(client)
        if state is None:
            raise FedloraError(
                f"client {client} has reported no measured rate; start it with its link probe, or "
                "set channel.model to a simulated channel"
            )
        return Link(
            state.up_snr_db,
            state.down_snr_db,
            state.bandwidth_hz,
            state.up_rate_bps,
            state.down_rate_bps,
        )
