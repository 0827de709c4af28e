"""Federated LoRA beside fedlora: Flower's FedAvg over PEFT adapters that each client trains whole.

Every client holds the undivided model. In a round it takes the common adapter and head, goes
``train.steps`` steps over its own rows with a fresh optimiser, and sends both back; Flower's
``aggregate`` averages them by rows. What travels is both, in fp32, down and up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from flwr.server.strategy.aggregate import aggregate
from torch import nn

from fedlora.config import Scenario
from fedlora.server.compute import AdapterState
from fedlora.tasks import Sample
from simulations.unsplit import Unsplit

Arrays = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Averaged:
    """What federated LoRA came to.

    Attributes
    ----------
    loss, accuracy
        Held out, of the last average; no accuracy for language modelling.
    bits
        Of a client and round, up and down.
    """

    loss: float
    accuracy: float | None
    bits: int


class FederatedLora(Unsplit):
    """FedAvg over adapters and heads; see ``Unsplit`` for the parameters.

    The scenario's ``train.steps`` are those of a client in a round.
    """

    def __init__(self, scenario: Scenario, adapter: AdapterState) -> None:
        super().__init__(scenario, adapter)
        head = [] if self.head is None else list(self.head.parameters())
        self._lora = [p for p in self.model.parameters() if p.requires_grad]
        self._head = [parameter for parameter in head if parameter.requires_grad]

    def average(self) -> Averaged:
        """Train for all rounds of the scenario, and evaluate the last average."""
        train, common = self.scenario.train, self._take()
        own = [client.door.truth(client.train) for client in self.clients]
        for round_ in range(train.rounds):
            results = []
            for client, records in zip(self.clients, own, strict=True):
                self._give(common)
                batches = [client.batches.indices() for _ in range(train.steps)]
                optimizer = self._optimizer()
                for step, batch in enumerate(batches, round_ * train.steps):
                    self._local(optimizer, step, [records[number] for number in batch])
                results.append((self._take(), sum(map(len, batches))))
            common = aggregate(results)
        self._give(common)
        loss, accuracy = self._evaluate()
        return Averaged(loss, accuracy, 2 * 32 * sum(array.size for array in common))

    def _local(
        self, optimizer: torch.optim.Optimizer, step: int, samples: Sequence[Sample]
    ) -> None:
        total, weight = self._loss(samples)
        optimizer.zero_grad()
        (total / weight).backward()  # type: ignore[no-untyped-call]
        config = self.scenario.train
        if config.clip_norm > 0:
            nn.utils.clip_grad_norm_([*self._lora, *self._head], config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate(step, head=group["head"])
        optimizer.step()

    def _optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": self._lora, "head": False}]
        groups += [{"params": self._head, "head": True}] if self._head else []
        return torch.optim.AdamW(groups, weight_decay=self.scenario.train.weight_decay)

    def _take(self) -> Arrays:
        return [p.detach().numpy().copy() for p in (*self._lora, *self._head)]

    def _give(self, arrays: Arrays) -> None:
        for parameter, array in zip((*self._lora, *self._head), arrays, strict=True):
            parameter.data.copy_(torch.from_numpy(array))
