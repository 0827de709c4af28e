"""Real tokens a second on real text, whose rows differ in length, beside PEFT with padding."""

from __future__ import annotations

import csv
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from clients.simulated_data import SimulatedData
from fedlora.batch_order import BatchStream
from fedlora.config import (
    DataConfig,
    EvaluateConfig,
    FederationConfig,
    HeadConfig,
    LoraConfig,
    ModelConfig,
    PartitionConfig,
    Scenario,
    TaskConfig,
    TrainConfig,
)
from fedlora.scenarios import find_scenario
from fedlora.server.compute import SplitEngine
from fedlora.server.run import ServerRun
from fedlora.tasks import IGNORED, Sample, Task, load_tokenizer, task_class
from simulations.bench.contest import SPLIT, Contest
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.bench.federation import over_tls
from simulations.bench.unsplit import Undivided
from simulations.in_process import connect

PADDED, SORTED, FULL_LOGITS = "padded", "sorted", "padded_full_logits"
CLIENTS, ROWS, RANK = 8, 4, 8
# What the first try with rows attended to one by one reached, and the goal set from it.
AT_LEAST = {"sst2-minilm": 1.7, "agnews-minilm": 2.2, "e2e-tinystories": 1.3}
OVER_TLS = 0.95  # of that
_MAX_LENGTH = {"agnews-minilm": 128}


class TextWorkload:
    """A scenario's own texts, eight clients with as many rows each in a step.

    Parameters
    ----------
    scenario
        Model, task and data.
    steps
        Optimiser steps of the run.
    states
        Folder where clients in processes of their own keep their state.
    rows
        Rows of each client in a step.

    Attributes
    ----------
    states
        See above.
    """

    def __init__(self, scenario: Scenario, steps: int, states: str = "", rows: int = ROWS) -> None:
        self.states, self._rows = states, rows
        self.scenario = replace(
            scenario,
            data=replace(scenario.data, test="", holdout=0.0),
            partition=PartitionConfig(kind="iid", min_rows=rows),
            federation=FederationConfig(clients=CLIENTS),
            lora=LoraConfig(r_max=RANK, alpha=2.0 * RANK),
            train=TrainConfig(rounds=1, steps=steps, batch_size=rows, lr=1e-3, schedule="constant"),
            head=HeadConfig(share="step"),
            evaluate=EvaluateConfig(baseline=False),
        )
        data = SimulatedData(self.scenario, CLIENTS)
        self._records = [data.rows_of(client)[0] for client in range(CLIENTS)]

    @property
    def task(self) -> Task:
        """The task, as a client builds it."""
        return task_class(self.scenario.task.kind)(self.scenario.task, self.scenario.task.labels)

    def node_config(self, client: int) -> dict[str, Any]:
        """Refuse: a host's clients divide the scenario's texts, one's own process has a file."""
        raise NotImplementedError(f"client {client} has no file of its own")

    def samples(self, folder: Path) -> list[list[Sample]]:
        """Return each client's samples."""
        tokenizer = load_tokenizer(folder)
        return [self.task.samples(own, tokenizer, self.scenario.data) for own in self._records]

    def batches(self, samples: list[list[Sample]]) -> Iterator[list[Sample]]:
        """Yield the rows of all clients together, as the clients draw them."""
        streams = [
            BatchStream(own, self._rows, self.scenario.seed, client)
            for client, own in enumerate(samples)
        ]
        while True:
            yield [
                own[index]
                for own, stream in zip(samples, streams, strict=True)
                for index in stream.indices()
            ]


def sorted_batches(samples: list[list[Sample]]) -> Iterator[list[Sample]]:
    """Yield batches of rows of nearly one length, in random order."""
    rows = sorted(chain(*samples), key=lambda sample: len(sample.ids))
    size = CLIENTS * ROWS
    batches = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    rng = random.Random(0)
    while True:
        yield rng.choice(batches)


class PaddedText(Undivided):
    """PEFT on the undivided model, its rows padded to the longest of the batch.

    Parameters
    ----------
    workload, engine
        What is trained, and whose initial adapter is used.
    batches
        Rows of each step.
    full_logits
        Whether a language model computes logits at every position, as Hugging Face's loss does, and
        not at those that are trained alone.
    """

    def __init__(
        self,
        workload: TextWorkload,
        engine: SplitEngine,
        batches: Iterator[list[Sample]],
        *,
        full_logits: bool = False,
    ) -> None:
        super().__init__(workload.scenario, workload.task, engine)
        self._rows = batches
        self._full_logits = full_logits
        self.tokens = 0

    def loss(self) -> torch.Tensor:
        """See ``Undivided``."""
        rows = next(self._rows)
        self.tokens = sum(len(row.ids) for row in rows)
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row.ids)], mask[place, : len(row.ids)] = torch.tensor(row.ids), 1
        if self.head is not None:
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            classes = torch.tensor([row.target for row in rows])
            return F.cross_entropy(self.head(pooled), classes)
        targets = torch.full_like(ids, IGNORED)
        for place, row in enumerate(rows):
            targets[place, : len(row.ids)] = torch.tensor(row.target)
        if self._full_logits:
            logits = self.model(input_ids=ids, attention_mask=mask).logits
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        whole = self.model.get_base_model()
        states = whole.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        trained = targets != IGNORED
        return F.cross_entropy(whole.lm_head(states[trained]), targets[trained])


def text_in_process(context: Context, name: str, tick: Tick) -> list[Figure]:
    """Measure over in-process links on a scenario's texts, or on tiny ones of random words."""
    with _workload(context, name) as workload:
        contest = Contest(context.settings.warm_up, context.settings.pairs, tick)
        server = connect(workload.scenario, contest)
        _enter_peft(contest, workload, server)
        server.training.run()
        server.end()
    return _figures(contest, {PADDED: AT_LEAST.get(name), SORTED: 1.0})


def text_over_tls(context: Context, name: str, tick: Tick) -> list[Figure]:
    """Measure over the TLS stream, the clients in as many processes as there are cores."""
    with _workload(context, name) as workload:
        contest = Contest(context.settings.warm_up, context.settings.pairs, tick)
        with over_tls(workload, contest, min(CLIENTS, os.cpu_count() or 1)) as (server, _):
            _enter_peft(contest, workload, server)
            server.training.run()
    return _figures(contest, {PADDED: OVER_TLS * AT_LEAST[name] if name in AT_LEAST else None})


@contextmanager
def _workload(context: Context, name: str) -> Iterator[TextWorkload]:
    settings = context.settings
    with tempfile.TemporaryDirectory() as folder:
        scenario = _tiny(context, Path(folder)) if settings.tiny else shipped(name)
        yield TextWorkload(scenario, ticks(settings), str(Path(folder) / "states"))


def _enter_peft(contest: Contest, workload: TextWorkload, server: ServerRun) -> None:
    """Let PEFT on the undivided model train on the same rows padded, and on others sorted."""
    samples = workload.samples(server.checkpoint.folder)
    in_order = PaddedText(workload, server.engine, workload.batches(samples))
    by_length = PaddedText(workload, server.engine, sorted_batches(samples))
    contest.baselines = {PADDED: in_order, SORTED: by_length}
    if in_order.head is None:
        contest.baselines[FULL_LOGITS] = PaddedText(
            workload, server.engine, workload.batches(samples), full_logits=True
        )
    contest.others_rows = {SORTED}
    contest.tokens_of = lambda participant: (
        by_length.tokens if participant == SORTED else in_order.tokens
    )


def ticks(settings: Settings) -> int:
    """Return how often an experiment reports progress."""
    return settings.warm_up + settings.pairs + 1


def _figures(contest: Contest, at_least: Mapping[str, float | None]) -> list[Figure]:
    figures = [
        Figure(participant, contest.tokens_per_second(participant), "tokens/s")
        for participant in (SPLIT, *contest.baselines)
    ]
    for baseline in contest.baselines:
        ratio = contest.speed_ratio(SPLIT, baseline)
        spread = contest.ratio_quartiles(SPLIT, baseline)
        target = at_least.get(baseline)
        figures.append(Figure(f"split_to_{baseline}", ratio, "ratio", target, None, *spread))
    difference = contest.loss_difference
    return [*figures, Figure("loss_difference", difference, "relative", at_most=1e-3)]


def shipped(name: str) -> Scenario:
    """Return a scenario, its rows as long as they are measured."""
    scenario = find_scenario(name)
    length = _MAX_LENGTH.get(name, scenario.task.max_length)
    return replace(scenario, task=replace(scenario.task, max_length=length))


def _tiny(context: Context, folder: Path) -> Scenario:
    rng = random.Random(0)
    with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        for number in range(2 * CLIENTS * ROWS):
            writer.writerow((" ".join(["word"] * rng.randint(1, 6)), f"class {number % 2}"))
    return Scenario(
        model=ModelConfig(path=context.model("minilm")),
        task=TaskConfig("classification", "mean", 32, ("class 0", "class 1")),
        data=DataConfig(train=str(folder / "texts.csv")),
    )
