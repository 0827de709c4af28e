"""How peers learn from samples in one place; by FedAvg: ``simulations.csi.fedavg``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from simulations.csi.windows import Windows


@dataclass(frozen=True)
class Recipe:
    """How long and how fast.

    Attributes
    ----------
    epochs
        Passes over the samples.
    batch_size
        Samples of a step.
    lr
        Peak rate of AdamW, after a tenth of the steps; then it falls as a cosine.
    clip_norm
        Largest norm of a gradient.
    """

    epochs: int = 20
    batch_size: int = 80
    lr: float = 2e-3
    clip_norm: float = 1.0


Watch = Callable[[int, nn.Module], None]
"""Called after each round with its number, from 1, and the network."""


def train(
    network: nn.Module, own: Windows, recipe: Recipe, seed: int, watch: Watch | None = None
) -> nn.Module:
    """Train a network in place on samples; a round of ``watch`` is an epoch.

    Parameters
    ----------
    network
        Predicts normalised steps.
    own
        The samples.
    recipe, seed
        How, and in which order.
    """
    optimizer = torch.optim.AdamW(trained(network), weight_decay=0.0)
    steps, batches = steps_of(own, recipe), batches_forever(own, recipe.batch_size, seed)
    for epoch in range(recipe.epochs):
        places = range(epoch * steps, (epoch + 1) * steps)
        go(network, optimizer, batches, places, recipe.epochs * steps, recipe)
        if watch is not None:
            watch(epoch + 1, network)
    return network


def go(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Windows],
    steps: range,
    total: int,
    recipe: Recipe,
) -> None:
    """Take steps of a training in place.

    Parameters
    ----------
    network, optimizer
        What is trained, and by what.
    batches
        One is taken a step.
    steps, total
        Which steps of the whole training these are, which decides their rates, and how many that
        has.
    recipe
        How fast.
    """
    for step in steps:
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, total, recipe.lr)
        loss = batch.loss(network(batch.history)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained(network), recipe.clip_norm)
        optimizer.step()


def trained_numbers(network: nn.Module) -> int:
    """Return how many numbers of a network train."""
    return sum(p.numel() for p in trained(network))


@torch.no_grad()
def predict(network: nn.Module, windows: Windows) -> torch.Tensor:
    """Return a network's predictions in units of the data."""
    parts = [network(history) for history in torch.split(windows.history, 256)]
    return windows.in_units(torch.cat(parts))


def trained(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a network that train."""
    return [p for p in network.parameters() if p.requires_grad]


def steps_of(own: Windows, recipe: Recipe) -> int:
    """Return how many steps a pass over samples takes."""
    return math.ceil(len(own) / recipe.batch_size)


def _rate(step: int, steps: int, peak: float) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def batches_forever(own: Windows, size: int, seed: int) -> Iterator[Windows]:
    """Yield batches pass by pass, each pass in an order of its own."""
    for number in itertools.count(seed * 1009):
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(number))
        yield from (own.take(chosen) for chosen in torch.split(order, size))
