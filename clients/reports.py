"""What a client reports at the beginning of a round: its channel, and statistics if allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedlora.channel.channel import build_channel
from fedlora.config import Scenario
from fedlora.ranks.reports import ClientReport

Report = Callable[[int], Mapping[str, Any]]


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

    def report(round_: int) -> Mapping[str, Any]:
        return ClientReport(channel=channel.report(client, round_ - 1)).to_dict()

    return report
