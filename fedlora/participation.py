"""Who takes part in which round, as far as that is known before a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from fedlora.channel.schedule.base import build_scheduler, foreseen
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import planned_uploads
from fedlora.privacy.mechanisms import mechanism_of
from fedlora.tasks import head_trains

T = TypeVar("T")

_MOST_ROUNDS = 1000  # that are looked at; draws of later ones are no different


def draw_clients(clients: Sequence[T], wanted: int, seed: int, round_: int) -> list[T]:
    """Return the clients that are drawn for a round; the same for the same seed and round.

    Parameters
    ----------
    clients
        All that could be.
    wanted
        ``federation.clients_per_round``; 0 for all.
    seed, round_
        Of the run, and number of the round from 1.
    """
    if not 0 < wanted < len(clients):
        return list(clients)
    drawn = np.random.default_rng((seed, round_)).choice(len(clients), wanted, replace=False)
    return [clients[place] for place in sorted(drawn)]


class Foresight:
    """Who will take part in the rounds of a scenario whose clients all stay.

    Parameters
    ----------
    scenario
        Federation, seed, rounds and ``channel.schedule`` are used.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._scheduler = build_scheduler(
            scenario.channel.schedule, rounds=scenario.train.rounds, seed=scenario.seed
        )

    def clients(self, round_: int) -> list[int] | None:
        """Return the clients of a round, from 1; None where their reports decide."""
        federation = self.scenario.federation
        everybody = range(federation.clients)
        drawn = draw_clients(everybody, federation.clients_per_round, self.scenario.seed, round_)
        name = f"channel.schedule.scheduler {self.scenario.channel.schedule.scheduler}"
        return foreseen(self._scheduler, round_ - 1, drawn, name)

    def rounds(self) -> list[int]:
        """Return how many rounds each client is certain to take part in.

        Of a run of more than 1,000 rounds the first 1,000 are looked at.
        """
        rounds, clients = self.scenario.train.rounds, self.scenario.federation.clients
        if not 0 < self.scenario.federation.clients_per_round < clients and (
            len(self.clients(1) or ()) == clients
        ):
            return [rounds] * clients
        counts = [0] * clients
        for round_ in range(1, min(rounds, _MOST_ROUNDS) + 1):
            for client in self.clients(round_) or ():
                counts[client] += 1
        return counts


def check_robust(scenario: Scenario) -> None:
    """Refuse a robust average where some round is certain to have too few clients for it.

    Raises
    ------
    FedloraError
        Naming the round and how many it has.
    """
    if not scenario.robust.enabled:
        return
    foresight, needed = Foresight(scenario), 2 * scenario.robust.hostile + 1
    for round_ in range(1, min(scenario.train.rounds, _MOST_ROUNDS) + 1):
        clients = foresight.clients(round_)
        if clients is None:
            return
        if len(clients) < needed:
            raise FedloraError(
                f"robust.hostile is {scenario.robust.hostile}, which takes {needed} clients a "
                f"round, and channel.schedule.scheduler {scenario.channel.schedule.scheduler} "
                f"leaves {len(clients)} in round {round_}, so nothing would be trained; let more "
                "take part, or set robust.average to mean"
            )


def check_uploads(scenario: Scenario, rows: Sequence[int]) -> None:
    """Refuse a ``privacy.uploads`` that is certain to be used up before the run ends.

    Parameters
    ----------
    scenario
        Under an enabled policy.
    rows
        Training samples of each client.

    Raises
    ------
    FedloraError
        Naming the client and what it needs.
    """
    policy, train = scenario.privacy, scenario.train
    mechanism = mechanism_of(policy)
    if not policy.uploads or mechanism is None or mechanism.repeats:
        return  # paid for once
    for client, rounds in enumerate(Foresight(scenario).rounds()):
        exchanges = rounds * train.steps * train.accumulate
        needed = planned_uploads(exchanges, train.batch_size, rows[client])
        if needed > policy.uploads:
            raise FedloraError(
                f"privacy.uploads is {policy.uploads}, and client {client} uploads each of its "
                f"{rows[client]} training samples up to {needed} times in {rounds} rounds; set it "
                "to that or more, or to 0, which derives it"
            )


def check_best(scenario: Scenario) -> None:
    """Refuse to keep the best round, or wait for it, where nobody can tell or keep it.

    Raises
    ------
    FedloraError
        When nothing is evaluated, or a part of the model stays with the clients.
    """
    config = scenario.evaluate
    named = "evaluate.keep is 'best'" if config.keep == "best" else "evaluate.patience is set"
    if config.keep != "best" and not config.patience:
        return
    if scenario.privacy.enabled and not config.report:
        raise FedloraError(
            f"{named}, and under privacy nothing is evaluated unless evaluate.report is true; set "
            "it, and say by privacy-report on each device how"
        )
    if config.keep != "best":
        return
    if head_trains(scenario) and scenario.head.share == "personal":
        raise FedloraError(
            f"{named}, and personal heads stay on their clients as the last round leaves them; set "
            "head.share to step or round"
        )
    if scenario.train.embedding:
        raise FedloraError(
            f"{named}, and trained embeddings stay on their clients as the last round leaves them; "
            "set train.embedding to false"
        )
