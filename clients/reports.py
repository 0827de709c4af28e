"""What a client reports of its channel when a round begins."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from fedlora.channel import ChannelState, build_channel
from fedlora.channel.models.measured import MeasuredChannel
from fedlora.config import Scenario
from fedlora.errors import ClientLost
from fedlora.link.stream.client.client import StreamClient
from fedlora.link.stream.link_rate import MOST_BYTES, LinkRate, measure

log = logging.getLogger("fedlora.edge")

_ATTEMPTS = 10
_PAUSE_S = 0.5

Report = Callable[[int], ChannelState]
"""Returns the state of a client's own channel in a round, by its number from 1."""


def simulated_report(scenario: Scenario, client: int) -> Report:
    """Return the report of a simulated client: the channel model as the client would estimate it.

    Parameters
    ----------
    scenario
        Its channel section gives the model, its seed the fading.
    client
        Number of the client.
    """
    channel = build_channel(scenario.channel, scenario.seed)
    return lambda round_: channel.report(client, round_ - 1)


def device_report(scenario: Scenario, client: int, stream: StreamClient) -> Report:
    """Return the report of a device: as a simulated one, or what its link carries.

    Parameters
    ----------
    scenario
        Where ``channel.model`` is ``measured`` the rate is measured, else the channel is modelled.
    client
        Number of the client.
    stream
        The tensor stream, on which the client is attached when a report is due.
    """
    channel = build_channel(scenario.channel, scenario.seed)
    if not isinstance(channel.model, MeasuredChannel):
        return simulated_report(scenario, client)
    model = channel.model
    most_bytes = min(MOST_BYTES, (scenario.link.max_frame_mib << 20) // 2)

    def report(round_: int) -> ChannelState:
        del round_
        rate = _measured(partial(stream.probe, str(client)), most_bytes)
        log.info(
            "client %d: %.3g Mbit/s up, %.3g down", client, rate.up_bps / 1e6, rate.down_bps / 1e6
        )
        return model.state(client, rate.up_bps, rate.down_bps)

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
