"""What is trained in a measurement: a model, texts of one length, and a scenario over them."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
from fedlora.tasks import Sample, Task, load_tokenizer, task_class

CLASSES = ("negative", "positive")
_LETTERS = "etaoinshrdlu"


@dataclass(frozen=True)
class Load:
    """The size of a measurement.

    Attributes
    ----------
    model
        Scenario path of the model folder.
    task
        ``causal_lm`` or ``classification``.
    clients, rows, length
        Clients, rows of each in a step, and tokens of a row.
    rank
        LoRA rank, on all linear layers.
    """

    model: str
    task: str
    clients: int
    rows: int
    length: int
    rank: int = 8

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.clients * self.rows * self.length


class Workload:
    """Texts on disk that fill every row, and the scenario that trains on them.

    Parameters
    ----------
    load
        The size.
    steps
        Optimiser steps of the run.
    folder
        Where the texts are written, together and for each client.
    """

    def __init__(self, load: Load, steps: int, folder: Path) -> None:
        self.load = load
        pooled = load.task == "classification"
        self.scenario = Scenario(
            name="bench",
            model=ModelConfig(path=load.model),
            task=TaskConfig(load.task, "mean", load.length, CLASSES if pooled else ()),
            data=DataConfig(train=str(folder / "texts.csv"), holdout=0.0),
            partition=PartitionConfig(kind="iid", min_rows=load.rows),
            federation=FederationConfig(clients=load.clients),
            lora=LoraConfig(r_max=load.rank, alpha=2.0 * load.rank),
            train=TrainConfig(
                rounds=1, steps=steps, batch_size=load.rows, lr=1e-3, schedule="constant"
            ),
            head=HeadConfig(share="step"),
            evaluate=EvaluateConfig(baseline=False),
        )
        _write(Path(self.scenario.data.train), _texts(load))
        data = SimulatedData(self.scenario, load.clients)
        self._folder = folder
        self._records = [data.rows_of(client)[0] for client in range(load.clients)]
        for client, records in enumerate(self._records):
            _write(self._texts_of(client), [(r["text"], r["label"]) for r in records])

    def node_config(self, client: int) -> dict[str, Any]:
        """Return the Flower node configuration of a client's device, with its own texts."""
        return {
            "partition-id": client,
            "model": self.load.model,
            "data": str(self._texts_of(client)),
            "state": self.states,
        }

    @property
    def states(self) -> str:
        """Folder where clients keep their state between rounds."""
        return str(self._folder / "states")

    def _texts_of(self, client: int) -> Path:
        return self._folder / f"client-{client}.csv"

    @property
    def task(self) -> Task:
        """The task, as a client builds it."""
        return task_class(self.load.task)(self.scenario.task, self.scenario.task.labels)

    def batches(self, model: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the union of the clients' batches: token ids (rows, length), classes (rows,)."""
        task, tokenizer = self.task, load_tokenizer(model)
        samples = [task.samples(own, tokenizer, self.scenario.data) for own in self._records]
        streams = [
            BatchStream(own, self.load.rows, self.scenario.seed, client)
            for client, own in enumerate(samples)
        ]
        while True:
            rows: list[Sample] = []
            for own, stream in zip(samples, streams, strict=True):
                rows += [own[index] for index in stream.indices()]
            classes = [row.target if isinstance(row.target, int) else -1 for row in rows]
            yield torch.tensor([row.ids for row in rows]), torch.tensor(classes)


def _texts(load: Load) -> list[tuple[str, str]]:
    """Return texts of random words that are longer than a row in any tokenizer."""
    rng = random.Random(0)
    texts = []
    for number in range(load.clients * load.rows):
        words = ["".join(rng.choices(_LETTERS, k=5)) for _ in range(load.length)]
        texts.append((" ".join(words), CLASSES[number % len(CLASSES)]))
    return texts


def _write(file: Path, texts: list[tuple[str, str]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *texts])
