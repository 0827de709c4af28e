"""A federation of the quickstart's decoder, with and without a hostile client."""

from __future__ import annotations

from functools import cache

import torch

from fedlora.config import Scenario, with_overrides
from simulations.in_process import Record, connect
from simulations.studies.poison.attackers import POISONS, poisoner

HOSTILE = "0"
SHORT = (
    "data.train=package:simulations/quickstart/requests.csv",
    "data.test=package:simulations/quickstart/requests-test.csv",
    "data.label=intent",
    "data.max_rows=480",
    "task.max_length=24",
    "lora.r_max=4",
    "head.share=step",
    "train.rounds=1",
    "train.steps=16",
    "train.batch_size=4",
    "train.lr=0.01",
    "train.clip_norm=1.0",
    "evaluate.baseline=false",
    "compute.threads=1",
)


class Outcome:
    """A run that is over: its held-out metric and its adapter."""

    def __init__(self, poison: str, overrides: tuple[str, ...]) -> None:
        record = Record()
        hostile = {HOSTILE} if poison else set()
        wrap = poisoner(hostile, POISONS[poison or "huge"])
        scenario = with_overrides(Scenario(), [*SHORT, *overrides])
        run = connect(scenario, record, 1, wrap)
        run.training.run()
        self.metric = record.rounds[-1]["metric"] or 0.0
        self.adapter: dict[str, torch.Tensor] = run.engine.adapter()
        self.lost = run.cohort.lost


@cache
def outcome(poison: str, *overrides: str) -> Outcome:
    """Run eight clients; the first one is hostile where a poison is named."""
    return Outcome(poison, overrides)
