"""The air interface of a run: what is true of the channel, and what is reported of it.

Server and edge build the same ``Channel`` from the scenario and the seed. The edge reports with it,
the server reckons air time with it, and neither needs to be told what the other drew.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

from fedlora import registry
from fedlora.channel.estimate import estimate
from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.models.measured import MeasuredChannel
from fedlora.channel.rate import RateRule, Shannon, rate_rule
from fedlora.channel.state import ChannelState
from fedlora.channel.streams import Stream, stream
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError

_REMEMBERED_LINKS = 4096


class Channel:
    """The channels of all clients over the run.

    Parameters
    ----------
    config
        The scenario's channel section.
    model
        Gives the link of a client in a fading block.
    seed
        The run's seed, 0 or more.
    """

    def __init__(self, config: ChannelConfig, model: ChannelModel, seed: int) -> None:
        self.config = config
        self.model = model
        self.rule: RateRule = rate_rule(config.rate, config.gap_db)
        self._seed = seed
        # A round sends hundreds of payloads within the same few blocks.
        self._link = lru_cache(maxsize=_REMEMBERED_LINKS)(model.sample)
        self.measured = isinstance(model, MeasuredChannel)
        self.fades_within_round = config.coherence_s > 0 and not self.measured

    def truth(
        self,
        client: int,
        round: int,
        offset_s: float = 0.0,
        bandwidth_hz: float | None = None,
    ) -> ChannelState:
        """Return the true channel of a client.

        Parameters
        ----------
        client
            Index of the client, from 0.
        round
            Index of the round, from 0.
        offset_s
            Time since the round started, in seconds.
        bandwidth_hz
            Bandwidth that the client has, where a scheduler changed its own.
        """
        state = self._state(client, self.block(round, offset_s))
        return state if bandwidth_hz is None else self.at_bandwidth(state, bandwidth_hz)

    def report(self, client: int, round: int) -> ChannelState:
        """Return what a client reports when a round starts: late and with an estimation error."""
        setting = self.config.report
        if self.measured:
            return self._state(client, 0)
        now_s = round * self.config.round_s
        then_s = max(0.0, now_s - setting.delay_rounds * self.config.round_s - setting.delay_s)
        # The tolerance keeps a delay of whole blocks from slipping into the block before.
        block = math.floor(then_s / self.config.block_s + 1e-9)
        seen = dataclasses.replace(self._state(client, block), age_s=now_s - then_s)
        rng = stream(self._seed, Stream.REPORT, client, round)
        return estimate(seen, setting.error_db, self.rule, rng)

    def knows(self, client: int) -> bool:
        """Return whether there is anything to say of a client's channel: not before it measured."""
        return not isinstance(self.model, MeasuredChannel) or self.model.knows(client)

    def observe(self, client: int, state: ChannelState) -> None:
        """Take a client's measured state; a simulated channel needs none and ignores it."""
        if isinstance(self.model, MeasuredChannel):
            self.model.observe(client, state)
            self._link.cache_clear()

    def block(self, round: int, offset_s: float = 0.0) -> int:
        """Return the index of the fading block at a time within a round."""
        start = round * self.config.blocks_per_round
        if not self.fades_within_round:
            return start
        return start + math.floor(offset_s / self.config.block_s)

    def at_bandwidth(self, state: ChannelState, bandwidth_hz: float) -> ChannelState:
        """Return the state of a link whose transmit power is spread over another bandwidth.

        Raises
        ------
        FedloraError
            When the SNR of the link is not known.
        """
        if bandwidth_hz == state.bandwidth_hz:
            return state
        if state.up_snr_db is None or state.down_snr_db is None:
            raise FedloraError(
                f"a measured link cannot be given {bandwidth_hz:g} Hz, its SNR is not known; set "
                "channel.schedule.scheduler to all, or channel.options.equivalent_snr to true"
            )
        change_db = 10 * math.log10(state.bandwidth_hz / bandwidth_hz)
        up_db, down_db = state.up_snr_db + change_db, state.down_snr_db + change_db
        rule = Shannon(self.config.gap_db) if state.derived else self.rule
        return dataclasses.replace(
            state,
            up_snr_db=up_db,
            down_snr_db=down_db,
            bandwidth_hz=bandwidth_hz,
            up_rate_bps=rule.rate_bps(up_db, bandwidth_hz),
            down_rate_bps=rule.rate_bps(down_db, bandwidth_hz),
        )

    def _state(self, client: int, block: int) -> ChannelState:
        link: Link = self._link(client, block)
        try:
            return ChannelState(
                link.up_snr_db,
                link.down_snr_db,
                link.bandwidth_hz,
                self._rate_bps(link.up_rate_bps, link.up_snr_db, link.bandwidth_hz),
                self._rate_bps(link.down_rate_bps, link.down_snr_db, link.bandwidth_hz),
                derived=link.up_rate_bps is not None,
            )
        except FedloraError as error:
            reason = str(error).partition(";")[0]
            raise FedloraError(
                f"channel.model {self.config.model} gives client {client} a link that no radio has "
                f"({reason}); mend channel.options"
            ) from None

    def _rate_bps(
        self, measured_bps: float | None, snr_db: float | None, bandwidth_hz: float
    ) -> float:
        if measured_bps is not None:
            return measured_bps
        if snr_db is None:
            raise FedloraError(
                f"channel model {self.config.model} gave a link with neither SNR nor rate; "
                "its sample must return one of the two"
            )
        return self.rule.rate_bps(snr_db, bandwidth_hz)


def build_channel(config: ChannelConfig, seed: int) -> Channel:
    """Return the channel that a scenario describes.

    Parameters
    ----------
    config
        The scenario's channel section.
    seed
        The run's seed.

    Raises
    ------
    FedloraError
        When the model is unknown, its options are wrong, or the seed is negative.
    """
    if seed < 0:
        raise FedloraError(f"seed is {seed}; random streams need 0 or more")
    cls = registry.resolve("channels", config.model, ChannelModel)
    return Channel(
        config, registry.make(cls, "channel.options", config.options, config, seed), seed
    )
