"""Rank-aware averaging in a whole run: each component is averaged over those who trained it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.federation import Federation, relative, scenario
from support.rank_cycles import RankCycles
from support.unsplit import Unsplit

CYCLES = [[0], [1, 3, 2], [2]]
# Nobody has the third component of two projections in three, and client 0 none at all.
RANKS = ["ranks.strategy=support.rank_cycles:RankCycles", f"ranks.options.cycles={CYCLES}"]


class Ranked(Unsplit):
    """The oracle with ranks: each client alone through factors that end at its ranks.

    Every component is a parameter of its own with an optimiser of its own, which steps only
    when some client has the component.
    """

    def __init__(self, federation: Federation, optimizer: Any) -> None:
        super().__init__(federation)
        cycles, names = RankCycles(CYCLES), [n[:-2] for n in self.factors if n.endswith(".A")]
        self.ranks = [dict(zip(names, cycles.ranks(k, len(names)), strict=True)) for k in range(3)]
        self.components = {
            (name, j): [
                torch.nn.Parameter(self.factors[f"{name}.A"][j].detach().clone()),
                torch.nn.Parameter(self.factors[f"{name}.B"][:, j].detach().clone()),
            ]
            for name in names
            for j in range(self.config.lora.r_max)
        }
        self.own = {key: optimizer(pair) for key, pair in self.components.items()}

    def show(self, client: int) -> None:
        """Put the components that a client has into the model, and zeros elsewhere."""
        with torch.no_grad():
            for (name, j), (row, column) in self.components.items():
                has = float(j < self.ranks[client][name])
                self.factors[f"{name}.A"][j] = row * has
                self.factors[f"{name}.B"][:, j] = column * has

    def step(self, number: int) -> float:
        total, contributors = 0.0, dict.fromkeys(self.components, 0)
        batch = [stream.next() for stream in self.batches]
        for client, own in enumerate(batch):
            self.show(client)
            loss, _ = self.loss([rows if k == client else [] for k, rows in enumerate(batch)])
            for factor in self.factors.values():
                factor.grad = None
            loss.backward()
            total += loss.item()
            for (name, j), pair in self.components.items():
                if j >= self.ranks[client][name]:
                    continue
                contributors[name, j] += len(own)
                grads = (self.factors[f"{name}.A"].grad[j], self.factors[f"{name}.B"].grad[:, j])
                for part, grad in zip(pair, grads, strict=True):
                    part.grad = grad.clone() if part.grad is None else part.grad + grad
        rows = sum(len(own) for own in batch)
        self.heads[0].grad /= rows
        for key, count in contributors.items():
            for part in self.components[key]:
                if count:
                    part.grad /= count
        for optimizer in (*self.own.values(), self.optimizers["head"]):
            optimizer.param_groups[0]["lr"] = self.rate(number)
            optimizer.step()
            optimizer.zero_grad()
        return total / rows


class PlainDescent:
    """Gradient descent in place of the engine's optimiser: its step shows the gradient's scale."""

    def __init__(self, projections: Any) -> None:
        self.projections = projections

    @torch.no_grad()
    def step(self, lr: float, active: torch.Tensor) -> None:
        del active
        for projection in self.projections:
            projection.A.sub_(projection.A.grad, alpha=lr)
            projection.B.sub_(projection.B.grad, alpha=lr)

    def zero_grad(self) -> None:
        for projection in self.projections:
            projection.A.grad = projection.B.grad = None


def check(federation: Federation, oracle: Ranked) -> None:
    expected = oracle.run()
    federation.run()
    assert federation.recorder.losses() == pytest.approx(expected, rel=1e-5)
    adapter = federation.server.engine.adapter()
    for (name, j), (row, column) in oracle.components.items():
        A, B = adapter[f"{name}.A"][j], adapter[f"{name}.B"][:, j]
        if any(ranks[name] > j for ranks in oracle.ranks):
            assert relative(A, row.detach()) < 1e-4, (name, j)
            assert relative(B, column.detach()) < 1e-3, (name, j)
            assert B.norm() > 0
        else:
            assert torch.equal(A, oracle.start[f"{name}.A"][j])
            assert torch.equal(B, torch.zeros_like(B))
    # Client 0 has rank 0 everywhere and yet teaches the head that all share.
    assert relative(federation.head()[0], oracle.heads[0].detach()) < 1e-4


def test_components_are_averaged_over_their_contributors(tiny, records):
    config = scenario(tiny["gpt2"], records, "head.share=step", "train.lr=0.2", *RANKS)
    federation = Federation(config)
    engine: Any = federation.server.engine
    engine.update.optimizer = PlainDescent(engine.projections)
    check(federation, Ranked(federation, torch.optim.SGD))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_adamw_keeps_time_for_each_component(tiny, records, family):
    config = scenario(tiny[family], records, "head.share=step", "train.weight_decay=0.1", *RANKS)
    federation = Federation(config)
    check(federation, Ranked(federation, lambda p: torch.optim.AdamW(p, weight_decay=0.1)))
