"""One run of one strategy at one SNR with one seed, and its reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedlora.config import RanksConfig, Scenario, ScheduleConfig
from simulations.in_process import Record, connect
from simulations.studies.compare.reward import (
    Losses,
    client_rewards,
    losses_by_round,
    mean_reward,
)
from simulations.studies.compare.strategies import Contender


@dataclass(frozen=True)
class Trial:
    """What to run.

    Attributes
    ----------
    contender
        The strategy and its options.
    snr_db
        Mean downlink SNR of all clients, in dB.
    seed
        Of data, partition, model, fading and strategy.
    """

    contender: Contender
    snr_db: float
    seed: int

    @property
    def key(self) -> tuple[str, float, int]:
        """What tells trials apart."""
        return self.contender.label, self.snr_db, self.seed

    def __str__(self) -> str:
        """Return a few words for a line of progress."""
        return f"{self.contender.label}, {self.snr_db:g} dB, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """What came of a trial.

    Attributes
    ----------
    row
        The line of ``compare.csv``.
    projections
        Layer and name of each projection.
    mean_ranks
        Mean delivered rank of each projection, over the rounds and clients.
    trace
        For each round and client: SNR in dB, mean delivered rank, whether it arrived, and loss.
    complaints
        What the strategy did wrong, if anything; the last valid ranks were used instead.
    metric_name
        What the row's ``metric`` is; empty in folders of earlier releases.
    """

    row: dict[str, Any]
    projections: list[tuple[int, str]]
    mean_ranks: list[float]
    trace: list[dict[str, Any]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    metric_name: str = ""


_BLIND = ("all", "random_k")
"""Schedulers that choose clients without looking at their channels."""


def run_reference(scenario: Scenario, seed: int) -> Losses:
    """Return the held-out losses of a run that trains and has all ranks, without any channel.

    Under a scheduler that follows the channel all clients take part in it: there is no channel, and
    the reference must know every client that one of the trials may choose.

    Parameters
    ----------
    scenario
        The comparison's scenario.
    seed
        Of data, partition and model.
    """
    schedule, federation = scenario.channel.schedule, scenario.federation
    if schedule.scheduler not in _BLIND:
        schedule, federation = ScheduleConfig(), replace(federation, clients_per_round=0)
    plain = replace(
        scenario,
        seed=seed,
        ranks=RanksConfig("uniform"),
        federation=federation,
        channel=replace(scenario.channel, deliver_every=0, schedule=schedule),
        evaluate=replace(scenario.evaluate, every=1, baseline=False),
    )
    record = Record()
    connect(plain, record, workers=1).training.run()
    return losses_by_round(record.rounds)


def run_trial(scenario: Scenario, trial: Trial, reference: Losses, price: float) -> Result:
    """Run a trial.

    Parameters
    ----------
    scenario
        The comparison's scenario.
    trial
        What to run.
    reference
        Of the trial's seed, from ``run_reference``.
    price
        Nats that a whole deadline of air time costs.
    """
    scenario = trial_scenario(scenario, trial)
    record = Record()
    server = connect(scenario, record, workers=1)
    server.training.run()
    rounds, losses = record.rounds, losses_by_round(record.rounds)
    deadline_s = scenario.channel.deadline_s
    rewards, trace, ranks = [], [], []
    for item, own, best in zip(rounds, losses, reference, strict=True):
        rows = {client: server.air.row(item["round"], client) for client in own}
        seconds = {c: row.seconds["down"]["adapter"] for c, row in rows.items() if row}
        rewards.append(client_rewards(own, best, seconds, deadline_s, price))
        for client, told in item["clients"].items():
            ranks.append(told["ranks"])
            trace.append(
                {
                    "round": item["round"],
                    "client": client,
                    "snr_db": told["snr_db"],
                    "mean_rank": told["mean_rank"],
                    "delivered": told.get("delivered"),
                    "loss": own[client],
                }
            )
    totals = server.air.ledger.totals()
    row = {
        "strategy": trial.contender.label,
        "snr_db": trial.snr_db,
        "seed": trial.seed,
        "metric": rounds[-1]["metric"],
        "loss": rounds[-1]["loss"],
        "reward": mean_reward(rewards),
        "adapter_bits": totals["bits"]["down"]["adapter"],
        "air_seconds": totals["air_seconds"],
        "late": totals["late_deliveries"],
        "mean_rank": float(np.mean(ranks)),
    }
    space = server.training.ranking.space
    projections = [(p.layer, p.name) for p in space.projections]
    complaints = [str(complaint) for complaint in server.training.ranking.strategy.complaints]
    mean_ranks = np.mean(ranks, axis=0).tolist()
    name = str(rounds[-1]["metric_name"])
    return Result(row, projections, mean_ranks, trace, complaints, name)


def trial_scenario(scenario: Scenario, trial: Trial) -> Scenario:
    """Return the scenario of one trial."""
    same = trial.contender.name == scenario.ranks.strategy
    options: Mapping[str, Any] = scenario.ranks.options if same else {}
    return replace(
        scenario,
        seed=trial.seed,
        ranks=replace(
            scenario.ranks,
            strategy=trial.contender.name,
            options={**options, **trial.contender.options},
        ),
        channel=replace(scenario.channel, snr_db=(trial.snr_db,)),
        evaluate=replace(scenario.evaluate, every=1, baseline=False),
    )
