"""The scenario's ``[channel]`` section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedlora.checks import BANDWIDTH_MAX_HZ, BANDWIDTH_MIN_HZ
from fedlora.config.ranges import check_ranges, within
from fedlora.errors import FedloraError

SNR_LIMIT_DB = 200.0
SHORTEST_S, LONGEST_S = 1e-6, 1e9
BLOCKS_MAX = 1_000_000
"""Fading blocks of a round: more are no more exact, and take the time that they model."""
MOST_WALKED_BLOCKS = 1_000
"""Of them, those that payloads of a client, round and direction meet one by one."""


@dataclass(frozen=True)
class ReportConfig:
    """How far the channel that clients report is from the true one.

    Attributes
    ----------
    error_db
        Standard deviation of the estimation error that is added to each SNR, in dB.
    delay_rounds, delay_s
        How old the reported channel is when a round starts; the two add up. Before the run is that
        old, the report describes the channel at its start.
    lead_s
        How long after the round's start a prediction is for, such as when the adapter is sent, in
        seconds; see ``ChannelConfig.predict``.
    history
        How many fading blocks a prediction is made from, at most.
    """

    error_db: float = within(0.0, 0.0, SNR_LIMIT_DB)
    delay_rounds: int = within(0, 0, 10**6)
    delay_s: float = within(0.0, 0.0, LONGEST_S)
    lead_s: float = within(0.0, 0.0, LONGEST_S)
    history: int = within(256, 1, 4096)

    def __post_init__(self) -> None:
        check_ranges(self, "channel.report.")


@dataclass(frozen=True)
class ScheduleConfig:
    """Who takes part in a round, and with which share of the bandwidth.

    Attributes
    ----------
    scheduler
        Name of a registered scheduler (``all``, ``random_k``, ``lyapunov``) or ``module:Class``.
    total_bandwidth_hz
        Bandwidth that the scheduler divides in each direction, in Hz; 0 means the sum of what the
        clients report, of which ``all`` and ``random_k`` leave each client its own.
    options
        Keyword arguments of the scheduler.
    """

    scheduler: str = "all"
    total_bandwidth_hz: float = within(
        0.0, BANDWIDTH_MIN_HZ, BANDWIDTH_MAX_HZ, zero="what the clients report"
    )
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self, "channel.schedule.")


@dataclass(frozen=True)
class ChannelConfig:
    """The air between the clients and the server.

    Attributes
    ----------
    model
        Name of a registered channel model (``awgn``, ``rayleigh``, ``rician``, ``log_distance``,
        ``trace``, ``tdl``, ``cdl``, ``umi``, ``uma``, ``measured``) or ``module:Class``.
    options
        Keyword arguments of the model, such as ``k_factor_db`` of ``rician``.
    trace_format
        What a ``trace`` is written in; empty finds it in the file, where only one fits.
    snr_db
        Mean downlink SNR over ``bandwidth_hz``, in dB; models with a link budget of their own
        (``log_distance``, ``umi``, ``uma``) compute it instead, ``trace`` and ``measured`` read it.
    up_snr_offset_db
        Uplink SNR minus downlink SNR, in dB; 0 whatever the transmit powers are.
    bandwidth_hz
        Bandwidth of a client's own share, in Hz.
    draw
        What ``snr_db`` and ``bandwidth_hz`` with several entries mean. ``round``: each client draws
        one anew each round (as AirLLM does for each step). ``client``: the entries are dealt to the
        clients in turn and stay.
    round_s
        Time of the channel from the start of one round to the start of the next, in seconds. It is
        a setting, not the air time that a round took, so that every strategy meets the same fading.
    start_s
        Time of the channel at which the run starts, in whole fading blocks, in seconds: what was
        before is what a late report or a prediction knows of.
    coherence_s
        How long a fading block lasts, in seconds; 0 means as long as the round, however long that
        is. It divides ``round_s``.
    rate
        ``shannon``: capacity with a gap; ``nr_64qam``, ``nr_256qam``: 5G NR modulation and coding.
    gap_db
        SNR gap to capacity, in dB.
    up_power_w, down_power_w
        Transmit power of a client, and of the server for one client, in watts.
    deadline_s
        Latency budget of an adapter's delivery, in seconds: what comes later is not delivered.
    deliver_every
        Deliver adapters every so many rounds; 0 means never.
    bits_per_parameter
        Bits of one adapter parameter on the air.
    predict
        Predictor (``last``, ``ar``, or ``module:Class``) of what a client reports: from the
        measurements that it has by then, the channel at ``report.lead_s`` after the round's start.
        Empty: the newest measurement, however old.
    report, schedule
        See ``ReportConfig`` and ``ScheduleConfig``.
    """

    model: str = "awgn"
    options: Mapping[str, Any] = field(default_factory=dict)
    trace_format: Literal[
        "", "fedlora", "irish", "hsdpa", "ghent", "mahimahi", "oboe", "fcc", "pensieve"
    ] = ""
    snr_db: tuple[float, ...] = within((10.0,), -SNR_LIMIT_DB, SNR_LIMIT_DB)
    up_snr_offset_db: float = within(0.0, -SNR_LIMIT_DB, SNR_LIMIT_DB)
    bandwidth_hz: tuple[float, ...] = within((1e6,), BANDWIDTH_MIN_HZ, BANDWIDTH_MAX_HZ)
    draw: Literal["round", "client"] = "round"
    round_s: float = within(10.0, SHORTEST_S, LONGEST_S)
    start_s: float = within(0.0, 0.0, LONGEST_S)
    coherence_s: float = within(0.0, 0.0, LONGEST_S)
    rate: Literal["shannon", "nr_64qam", "nr_256qam"] = "shannon"
    gap_db: float = within(0.0, 0.0, SNR_LIMIT_DB)
    up_power_w: float = within(0.2, 1e-12, 1e12)
    down_power_w: float = within(1.0, 1e-12, 1e12)
    deadline_s: float = within(1.0, 1e-9, LONGEST_S)
    deliver_every: int = within(0, 1, 10**6, zero="never")
    bits_per_parameter: int = within(32, 1, 64)
    predict: str = ""
    report: ReportConfig = field(default_factory=ReportConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        for name in ("snr_db", "bandwidth_hz"):
            if not getattr(self, name):
                raise FedloraError(f"channel.{name} is empty; list at least one value")
        check_ranges(self, "channel.")
        if self.trace_format and self.model != "trace":
            raise FedloraError(
                f"channel.trace_format is {self.trace_format!r}, and channel.model "
                f"{self.model!r} replays no trace; leave it out, or set channel.model to trace"
            )
        blocks = self.round_s / self.coherence_s if self.coherence_s else 1.0
        if blocks > BLOCKS_MAX:
            raise FedloraError(
                f"channel.coherence_s is {self.coherence_s}, which cuts channel.round_s "
                f"{self.round_s} into {blocks:.3g} fading blocks; set "
                f"{self.round_s / BLOCKS_MAX:g} or more, or 0 for one block a round"
            )
        if round(blocks) < 1 or abs(blocks - round(blocks)) > 1e-6 * blocks:
            raise FedloraError(
                f"channel.coherence_s is {self.coherence_s} and does not divide channel.round_s "
                f"{self.round_s}; set an integer fraction of it, or 0 for one fading block a round"
            )

        starts = self.start_s / self.block_s
        if abs(starts - round(starts)) > 1e-6 * max(starts, 1.0):
            raise FedloraError(
                f"channel.start_s is {self.start_s:g}, which is no whole number of fading blocks "
                f"of {self.block_s:g} s; set a multiple of them"
            )
        self._check_prediction()

    def _check_prediction(self) -> None:
        """Refuse a prediction of what is known, and keys that only a prediction reads."""
        report, default = self.report, ReportConfig()
        if not self.predict:
            for key in ("lead_s", "history"):
                if getattr(report, key) != getattr(default, key):
                    raise FedloraError(
                        f"channel.report.{key} is {getattr(report, key):g}, and nothing is "
                        "predicted; set channel.predict, such as to ar, or leave it out"
                    )
            return
        if self.model == "measured":
            raise FedloraError(
                f"channel.predict is {self.predict!r:.80}, and channel.model measured knows no "
                "link's past; choose a modelled channel, or leave it out"
            )
        if not (report.delay_rounds or report.delay_s or report.lead_s):
            raise FedloraError(
                f"channel.predict is {self.predict!r:.80}, and a report without delay of the "
                "channel at the round's start leaves nothing to predict; set "
                "channel.report.delay_rounds, delay_s or lead_s"
            )

    @property
    def start_block(self) -> int:
        """Number of fading blocks before the run."""
        return round(self.start_s / self.block_s)

    @property
    def blocks_per_round(self) -> int:
        """Number of fading blocks from the start of one round to the start of the next."""
        return round(self.round_s / self.coherence_s) if self.coherence_s else 1

    @property
    def block_s(self) -> float:
        """Duration of a fading block, in seconds."""
        return self.round_s / self.blocks_per_round
