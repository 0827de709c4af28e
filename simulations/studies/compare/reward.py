"""What a run is worth: held-out improvement at the delivered ranks, minus the price of the air."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedlora.errors import FedloraError
from fedlora.report import RoundRecord

DEFAULT_PRICE = 0.2

Losses = list[dict[str, float]]
"""Held-out loss by client, one table for each round."""


@dataclass(frozen=True)
class ClientReward:
    """Reward of one client in one round.

    Attributes
    ----------
    gain
        Held-out loss of the reference minus that of the client with the adapter it has, in nats.
    cost
        Air time of the round's adapter over the deadline: 1 for a late one, 0 where none was sent.
    value
        ``gain - price * cost``.
    """

    gain: float
    cost: float
    value: float


def losses_by_round(rounds: Sequence[RoundRecord]) -> Losses:
    """Return each round's held-out loss by client.

    Raises
    ------
    FedloraError
        When a loss was not measured, or is private.
    """
    table: Losses = []
    for record in rounds:
        losses = {client: own.get("loss") for client, own in record["clients"].items()}
        known = {client: loss for client, loss in losses.items() if loss is not None}
        if len(known) < len(losses):
            raise FedloraError(
                f"round {record['round']} has clients without held-out loss, and the reward needs "
                "it; set evaluate.every=1, data.holdout above 0 and no privacy"
            )
        table.append(known)
    return table


def client_rewards(
    losses: Mapping[str, float],
    reference: Mapping[str, float],
    seconds: Mapping[str, float],
    deadline_s: float,
    price: float,
) -> dict[str, ClientReward]:
    """Return the reward of each client that took part in a round.

    A falling training loss does not raise it: the reference falls alike, and what counts is held
    out and measured with the adapter that was delivered.

    Parameters
    ----------
    losses, reference
        Held-out loss by client in this run and in the reference, in nats.
    seconds
        Air time of each client's adapter in the round.
    deadline_s
        Latency budget of the delivery.
    price
        Nats that a whole deadline of air time costs (lambda).
    """
    rewards = {}
    for client, loss in losses.items():
        gain, cost = reference[client] - loss, seconds.get(client, 0.0) / deadline_s
        rewards[client] = ClientReward(gain, cost, gain - price * cost)
    return rewards


def mean_reward(rewards: Sequence[Mapping[str, ClientReward]]) -> float:
    """Return the mean over rounds and clients."""
    return fmean(reward.value for round_ in rewards for reward in round_.values())
