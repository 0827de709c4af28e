"""What is written down of a round, and the metric in which a run is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedlora.checks import finite
from fedlora.ranks import ClientReport, RankDecision
from fedlora.report import ClientRecord, RoundRecord
from fedlora.server.air import Air
from fedlora.server.evaluation import Evaluation
from fedlora.server.exchange.spending import Spending
from fedlora.server.held_out import metrics_of
from fedlora.server.steps import StepTally
from fedlora.tasks import Counts


class Outcome:
    """The task's metric: what it is called, which way is better, and where the run began.

    Attributes
    ----------
    before
        Metric of the same head on the frozen backbone, once it is known.
    name, higher_is_better
        Known once something has been evaluated.
    """

    def __init__(self) -> None:
        self.before: float | None = None
        self.name = ""
        self.higher_is_better = True

    def of(self, counts: Counts | None) -> tuple[float | None, float | None]:
        """Return metric and loss of counts, and take note of the metric's name."""
        if counts is None:
            return None, None
        metrics = counts.metrics()
        self.name = metrics[0].name
        self.higher_is_better = metrics[0].higher_is_better
        return metrics[0].value, next(x.value for x in metrics if x.name == "loss")

    def fields(self) -> dict[str, Any]:
        """Return what summary and checkpoint keep."""
        return {
            "metric_name": self.name,
            "higher_is_better": self.higher_is_better,
            "metric_before": finite(self.before),
        }

    def load(self, fields: Mapping[str, Any]) -> None:
        """Take back what ``fields`` gave."""
        self.name = fields["metric_name"]
        self.higher_is_better = fields["higher_is_better"]
        self.before = fields["metric_before"]


def round_record(
    round_: int,
    step: int,
    reports: Mapping[str, ClientReport],
    decisions: Mapping[str, RankDecision],
    tally: StepTally,
    evaluation: Evaluation | None,
    outcome: Outcome,
    air: Air,
    spending: Spending,
) -> RoundRecord:
    """Return a round's record.

    Parameters
    ----------
    round_, step
        Number of the round, and of the last optimiser step in it.
    reports, decisions
        What the clients of the round reported, and the ranks that they were given.
    tally
        What its steps came to.
    evaluation
        Of the round's end; None where there was none.
    outcome, air, spending
        The run's.
    """
    metric, loss = outcome.of(evaluation.total) if evaluation else (None, None)
    more = (
        metrics_of(evaluation.total, evaluation.scores.values(), evaluation.texts.values())
        if evaluation
        else {}
    )
    clients: dict[str, ClientRecord] = {}
    for client, decision in decisions.items():
        own_metric, own_loss = outcome.of(evaluation.counts.get(client) if evaluation else None)
        channel, statistics = reports[client].channel, reports[client].statistics
        record: ClientRecord = air.client_record(round_, client)
        record |= ClientRecord(
            rows=tally.rows.get(client, 0),
            metric=own_metric,
            loss=own_loss,
            mean_rank=decision.deliver.mean,
            ranks=list(decision.deliver),
            epsilon=spending.epsilon(client),
            snr_db=channel.down_snr_db if channel else None,
            rate_bps=channel.down_rate_bps if channel else None,
        )
        if statistics is not None:
            record["statistics"] = statistics.told()
        clients[client] = record
    return (
        air.round_record(round_)
        | spending.round_fields()
        | RoundRecord(
            round=round_,
            step=step,
            steps=len(tally.losses),
            train_loss=tally.loss,
            loss=loss,
            metric=metric,
            metric_name=outcome.name,
            metrics=more,
            higher_is_better=outcome.higher_is_better,
            tokens=tally.tokens,
            mean_rank=float(np.mean([d.deliver.mean for d in decisions.values()])),
            clients=clients,
        )
    )
