"""The air interface of a run: what is true of the channel, and what is reported of it.

Server and edge build the same ``Channel`` from the scenario and the seed. The edge reports with it,
the server reckons air time with it, and neither needs to be told what the other drew.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import numpy as np

from fedlora import registry
from fedlora.blame import blaming, is_ours
from fedlora.channel.estimate import estimate
from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.models.measured import MeasuredChannel
from fedlora.channel.predict import ChannelPredictor, create_predictor, predicted
from fedlora.channel.rate import RateRule, Shannon, rate_rule
from fedlora.channel.state import RATE_MAX_BPS, RATE_MIN_BPS, SNR_LIMIT_DB, ChannelState
from fedlora.channel.streams import Stream, stream
from fedlora.checks import number
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError

_REMEMBERED_LINKS = 4096
_NO_DRAWS = np.random.default_rng(0)  # where nothing is drawn


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
        self._predictor = create_predictor(config.predict) if config.predict else None
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
        """Return what a client reports when a round starts: late and with an estimation error.

        With ``channel.predict`` it is what the client predicts from what it has measured by then.
        """
        setting = self.config.report
        if self.measured:
            return self._state(client, 0)
        block_s = self.config.block_s
        now_s = self.config.start_s + round * self.config.round_s
        then_s = max(0.0, now_s - setting.delay_rounds * self.config.round_s - setting.delay_s)
        # The tolerance keeps a delay of whole blocks from slipping into the block before.
        block = math.floor(then_s / block_s + 1e-9)
        seen = dataclasses.replace(self._state(client, block), age_s=now_s - then_s)
        if self._predictor is None:
            rng = stream(self._seed, Stream.REPORT, client, round)
            return estimate(seen, setting.error_db, self.rule, rng)
        meant = math.floor((now_s + setting.lead_s) / block_s + 1e-9)
        return self._predicted(self._predictor, client, seen, block, meant - block)

    def _predicted(
        self,
        predictor: ChannelPredictor,
        client: int,
        seen: ChannelState,
        block: int,
        ahead: int,
    ) -> ChannelState:
        """Return the newest state as it is predicted to be some blocks later."""
        first = max(0, block - self.config.report.history + 1)
        states = [self._measured(client, at) for at in range(first, block + 1)]
        by_rate = seen.derived or seen.up_snr_db is None or seen.down_snr_db is None
        history = np.array([_levels_db(state, by_rate=by_rate) for state in states])
        up_db, down_db = map(float, history[-1])
        if ahead > 0:
            up_db, down_db = predicted(predictor, self.config.predict, history, ahead)
        if by_rate:
            up_bps, down_bps = (_rate_of(level) for level in (up_db, down_db))
            rule, hz = Shannon(self.config.gap_db), seen.bandwidth_hz
            return dataclasses.replace(
                seen,
                up_snr_db=None if seen.up_snr_db is None else rule.snr_db(up_bps, hz),
                down_snr_db=None if seen.down_snr_db is None else rule.snr_db(down_bps, hz),
                up_rate_bps=up_bps,
                down_rate_bps=down_bps,
            )
        up_db, down_db = (min(max(x, -SNR_LIMIT_DB), SNR_LIMIT_DB) for x in (up_db, down_db))
        return dataclasses.replace(
            seen,
            up_snr_db=up_db,
            down_snr_db=down_db,
            up_rate_bps=self.rule.rate_bps(up_db, seen.bandwidth_hz),
            down_rate_bps=self.rule.rate_bps(down_db, seen.bandwidth_hz),
        )

    def _measured(self, client: int, block: int) -> ChannelState:
        """Return what a client measures of a fading block."""
        error_db = self.config.report.error_db
        rng = stream(self._seed, Stream.MEASUREMENT, client, block) if error_db else _NO_DRAWS
        return estimate(self._state(client, block), error_db, self.rule, rng)

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
        start = self.config.start_block + round * self.config.blocks_per_round
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
        what = f"channel.model {self.config.model}"
        with blaming(what, type(self.model)):
            link: object = self._link(client, block)
        if not isinstance(link, Link):
            raise FedloraError(
                f"{what} returns a {type(link).__name__} from sample(); expected a Link, such as "
                "self.mean_link(client, block) makes"
            )
        try:
            for name, value in vars(link).items():
                if value is not None or name == "bandwidth_hz":
                    number(name, value)
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
            whose = "" if is_ours(type(self.model)) else "its sample(), or "
            raise FedloraError(
                f"channel.model {self.config.model} gives client {client} a link that no radio has "
                f"({reason}); mend {whose}channel.options"
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


def _levels_db(state: ChannelState, *, by_rate: bool) -> tuple[float, float]:
    """Return uplink and downlink in dB: SNRs, or rates over 1 bit/s."""
    if by_rate or state.up_snr_db is None or state.down_snr_db is None:
        return 10 * math.log10(state.up_rate_bps), 10 * math.log10(state.down_rate_bps)
    return state.up_snr_db, state.down_snr_db


def _rate_of(level_db: float) -> float:
    return min(max(10 ** min(level_db / 10, 15.0), RATE_MIN_BPS), RATE_MAX_BPS)


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
