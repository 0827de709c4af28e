"""What a run comes to on the undivided model: plain PEFT, one client after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from fedlora.batch_order import BatchStream
from fedlora.tasks import Sample, head_trains
from simulations.fuzz.trial import Trial, is_factor
from simulations.fuzz.whole import Whole

Ranks = Callable[[int, int], int]
"""The rank of a client, by round from 1 and the client's number, at every projection."""


class Adam:
    """AdamW (beta 0.9 and 0.999) that counts the steps of each row or column apart."""

    def __init__(self, p: torch.Tensor, decay: float) -> None:
        self.m, self.v, self.decay = torch.zeros_like(p), torch.zeros_like(p), decay
        self.t = torch.zeros(1)

    def step(
        self, p: torch.Tensor, g: torch.Tensor, lr: float, active: torch.Tensor | None = None
    ) -> None:
        """Take a step where ``active`` is 1."""
        active = torch.ones(()) if active is None else active
        if self.t.shape != active.shape:
            self.t = torch.zeros_like(active)
        self.t = self.t + active
        on = (active > 0).expand_as(p)
        m, v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        t = self.t.clamp_min(1)
        size = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        new = p * (1 - lr * self.decay) - lr * size
        self.m, self.v = torch.where(on, m, self.m), torch.where(on, v, self.v)
        p.copy_(torch.where(on, new, p))


class Reference:
    """Trains the undivided model on the batches of a trial's clients.

    Parameters
    ----------
    trial
        A run; initial factors, initial heads, samples and the scenario are used.
    ranks
        See ``Ranks``.

    Attributes
    ----------
    adapter, heads, tables
        Factors by name, with what ``lora.also`` names among them, each client's head (one where it
        is shared every step), and each client's token embedding where it trains.
    losses
        Mean training loss of each step.
    """

    def __init__(self, trial: Trial, ranks: Ranks) -> None:
        self.scenario, self.ranks = trial.scenario, ranks
        self.train_config = train = self.scenario.train
        self.whole = whole = Whole(self.scenario)
        names = [p.name for p in trial.federation.server.engine.projections]
        lora = self.scenario.lora
        config = LoraConfig(
            r=lora.r_max,
            lora_alpha=lora.alpha,
            target_modules=[whole.prefix + name for name in names],
        )
        self.model: Any = get_peft_model(whole.base, config).eval()
        layers = {n: self.model.base_model.model.get_submodule(whole.prefix + n) for n in names}
        self.factors = {
            f"{name}.{which}": getattr(layer, f"lora_{which}")["default"].weight
            for name, layer in layers.items()
            for which in "AB"
        }
        inner = self.model.base_model.model
        self.whole_tensors = {
            name: inner.get_parameter(whole.prefix + name).requires_grad_()
            for name in trial.initial
            if not is_factor(name)
        }
        self.adapter = {key: value.clone() for key, value in trial.initial.items()}
        self.trains = head_trains(self.scenario)
        self.shared = self.scenario.head.share == "step" and self.trains
        clients = trial.federation.clients
        start = trial.heads[0][0].float()
        self.heads = [start.clone() for _ in range(1 if self.shared else len(clients))]
        self.table = whole.base.get_input_embeddings().weight
        self.table.requires_grad_(train.embedding)
        self.output = None if whole.pooled else whole.base.get_output_embeddings().weight
        self.tables = [self.table.detach().clone() for _ in clients if train.embedding]
        decay = train.weight_decay
        self._adapter_steps = {k: Adam(v, decay) for k, v in self.adapter.items()}
        self._head_steps = [Adam(head, decay) for head in self.heads]
        self._table_steps = [Adam(table, decay) for table in self.tables]
        self.own = [trial.samples(client) for client in clients]
        self.streams = [
            BatchStream(own, train.batch_size, self.scenario.seed, number)
            for number, own in enumerate(self.own)
        ]
        self.losses: list[float] = []

    def train(self) -> Reference:
        """Train for all steps."""
        train, rows = self.train_config, [0] * len(self.own)
        for step in range(train.total_steps):
            rows = [a + b for a, b in zip(rows, self._step(step), strict=True)]
            if (step + 1) % train.steps == 0:
                if self.scenario.head.share == "round" and self.trains:
                    self._average_heads(rows)
                rows = [0] * len(self.own)
        return self

    @torch.no_grad()
    def _average_heads(self, rows: Sequence[int]) -> None:
        pairs = zip(self.heads, rows, strict=True)
        mean = sum((head * (n / sum(rows)) for head, n in pairs), torch.zeros_like(self.heads[0]))
        for head in self.heads:
            head.copy_(mean)

    def _step(self, step: int) -> list[int]:
        """Take one optimiser step; return each client's rows in it."""
        r_max = self.scenario.lora.r_max
        names = sorted({k[:-2] for k in self.adapter if is_factor(k)})
        self._sums = {k: torch.zeros_like(v) for k, v in self.adapter.items()}
        self._weights = {name: torch.zeros(r_max) for name in names}
        self._head_sums = [torch.zeros_like(head) for head in self.heads]
        self._table_sums = [torch.zeros_like(table) for table in self.tables]
        clients, rows, total = [0.0] * len(self.own), [0] * len(self.own), 0.0
        for _ in range(self.train_config.accumulate):
            for client, stream in enumerate(self.streams):
                samples = [self.own[client][i] for i in stream.indices()]
                rank = min(self.ranks(step // self.train_config.steps + 1, client), r_max)
                loss, weight = self._add(client, samples, (torch.arange(r_max) < rank).float())
                total += loss
                clients[client] += weight
                rows[client] += len(samples)
        self.losses.append(total / sum(clients))
        self._update(step, clients)
        return rows

    def _add(self, client: int, samples: Sequence[Sample], mask: torch.Tensor) -> tuple[float, int]:
        """Add up the gradients of a client's batch; return its loss and the number of terms."""
        own = 0 if self.shared else client
        head = self.heads[own].clone().requires_grad_(self.trains)
        with torch.no_grad():
            for name, factor in self.factors.items():
                kept = mask[:, None] if name.endswith(".A") else 1.0
                factor.copy_(self.adapter[name] * kept)
            for name, tensor in self.whole_tensors.items():
                tensor.copy_(self.adapter[name])
            if self.tables:
                self.table.copy_(self.tables[client])
            if self.output is not None:
                self.output.copy_(head)
        if self.output is not None:
            self.output.requires_grad_(self.trains)
        self.model.zero_grad()
        out = self.whole.forward(self.model, samples)
        loss, weight = self.whole.loss(out, samples, head if self.whole.pooled else None)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, factor in self.factors.items():
            kept = mask[:, None] if name.endswith(".A") else mask
            self._sums[name] += factor.grad * kept
        for name, tensor in self.whole_tensors.items():
            if tensor.grad is not None:
                self._sums[name] += tensor.grad
        for name in self._weights:
            self._weights[name] += weight * mask
        if self.trains:
            gradient = head.grad if self.output is None else self.output.grad
            assert gradient is not None
            self._head_sums[own] += gradient
        if self.tables:
            self._table_sums[client] += self.table.grad
        return loss.item(), weight

    @torch.no_grad()
    def _update(self, step: int, clients: Sequence[float]) -> None:
        """Average, clip, and step all optimisers."""
        train = self.train_config
        for name, weights in self._weights.items():
            divisor = torch.where(weights > 0, weights, 1.0)
            self._sums[f"{name}.A"] /= divisor[:, None]
            self._sums[f"{name}.B"] /= divisor
        for name in self.whole_tensors:
            self._sums[name] /= sum(clients)
        if self.shared:
            self._head_sums[0] /= sum(clients)
        keys = [k for k in self._sums if not (self.scenario.lora.freeze_a and k.endswith(".A"))]
        common = [self._sums[k] for k in keys] + (self._head_sums if self.shared else [])
        if train.clip_norm:
            norm = torch.sqrt(sum((g.square().sum() for g in common), torch.zeros(())))
            torch._foreach_mul_(common, min(1.0, train.clip_norm / (float(norm) + 1e-6)))
        lr, head_lr = self._rate(step, train.lr), self._rate(step, train.head_lr or train.lr)
        for key in keys:
            active = None
            if is_factor(key):
                active = (self._weights[key[:-2]] > 0).float()
                active = active[:, None] if key.endswith(".A") else active[None, :]
            self._adapter_steps[key].step(self.adapter[key], self._sums[key], lr, active)
        for client, head in enumerate(self.heads if self.trains else []):
            gradient = self._head_sums[client] / (1.0 if self.shared else clients[client])
            self._head_steps[client].step(head, gradient, head_lr)
        for client, table in enumerate(self.tables):
            gradient = self._table_sums[client] / clients[client]
            self._table_steps[client].step(table, gradient, lr)

    def _rate(self, step: int, peak: float) -> float:
        train = self.train_config
        if step < train.warmup_steps:
            return peak * (step + 1) / train.warmup_steps
        part = (step - train.warmup_steps) / max(1, train.total_steps - train.warmup_steps)
        match train.schedule:
            case "linear":
                return peak * (1 - part)
            case "cosine":
                return peak * (1 + math.cos(math.pi * part)) / 2
        return peak
