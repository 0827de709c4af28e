"""What a client reports when a round begins: its channel, and statistics if allowed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fedlora.channel.channel import build_channel
from fedlora.channel.models.measured import MeasuredChannel
from fedlora.config import Scenario
from fedlora.errors import ClientLost
from fedlora.link.probe import MOST_BYTES, LinkRate, measure
from fedlora.link.stream_client import StreamClient
from fedlora.ranks.reports import ClientReport, DataStatistics

log = logging.getLogger("fedlora.edge")

_ATTEMPTS = 10
_PAUSE_S = 0.5

Report = Callable[[int], Mapping[str, Any]]


def simulated_report(
    scenario: Scenario, client: int, statistics: DataStatistics | None = None
) -> Report:
    """Return the report of a simulated client: the channel model as the client would estimate it.

    Parameters
    ----------
    scenario
        Its channel section gives the model, its seed the fading.
    client
        Number of the client.
    statistics
        Those of its text, where it tells them.
    """
    channel = build_channel(scenario.channel, scenario.seed)

    def report(round_: int) -> Mapping[str, Any]:
        return ClientReport(channel.report(client, round_ - 1), statistics).to_dict()

    return report


def device_report(
    scenario: Scenario,
    client: int,
    stream: StreamClient,
    statistics: DataStatistics | None = None,
) -> Report:
    """Return the report of a device: as a simulated one, or what its link carries.

    Parameters
    ----------
    scenario
        Where ``channel.model`` is ``measured`` the rate is measured, else the channel is modelled.
    client
        Number of the client.
    stream
        The tensor stream, on which the client is attached when a report is due.
    statistics
        Those of its text, where it tells them.
    """
    channel = build_channel(scenario.channel, scenario.seed)
    if not isinstance(channel.model, MeasuredChannel):
        return simulated_report(scenario, client, statistics)
    model = channel.model
    most_bytes = min(MOST_BYTES, (scenario.link.max_frame_mib << 20) // 2)

    def report(round_: int) -> Mapping[str, Any]:
        del round_
        rate = _measured(partial(stream.probe, str(client)), most_bytes)
        log.info(
            "client %d: %.3g Mbit/s up, %.3g down", client, rate.up_bps / 1e6, rate.down_bps / 1e6
        )
        state = model.state(client, rate.up_bps, rate.down_bps)
        return ClientReport(state, statistics).to_dict()

    return report


def _measured(exchange: Callable[[int, int], float], most_bytes: int) -> LinkRate:
    """Measure a link, again when the stream breaks meanwhile."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return measure(exchange, most_bytes)
        except ClientLost as error:
            log.warning("the link is measured again: %s", error)
            time.sleep(_PAUSE_S)
    return measure(exchange, most_bytes)
