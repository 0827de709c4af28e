"""How peers learn: from all samples, from a site's own, or by FedAvg."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from simulations.csi.windows import Windows

_FLOAT_BYTES = 4


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
    optimizer = torch.optim.AdamW(_trained(network), weight_decay=0.0)
    steps = _steps(own, recipe)
    for epoch in range(recipe.epochs):
        batches = _batches(own, recipe.batch_size, seed * 1009 + epoch)
        for place, batch in enumerate(batches):
            rate = _rate(epoch * steps + place, recipe.epochs * steps, recipe.lr)
            _step(network, optimizer, batch, rate, recipe.clip_norm)
        if watch is not None:
            watch(epoch + 1, network)
    return network


def federated_average(
    network: nn.Module,
    parts: Sequence[Windows],
    recipe: Recipe,
    rounds: int,
    seed: int,
    watch: Watch | None = None,
) -> int:
    """Train a network in place by FedAvg (McMahan et al. 2017); AdamW starts anew every round.

    Parameters
    ----------
    network
        Predicts normalised steps; becomes the average.
    parts
        Samples of each site.
    recipe
        Its epochs are shared out between the rounds, as evenly as whole steps allow.
    rounds
        Averages, weighted by samples.
    seed
        Of the order of samples.

    Returns
    -------
    int
        Bytes of trained weights, up and down, of all sites, in fp32.
    """
    steps = recipe.epochs * _steps(parts[0], recipe)
    edges = [round(steps * number / rounds) for number in range(rounds + 1)]
    streams = [_stream(part, recipe.batch_size, seed + 7919 * k) for k, part in enumerate(parts)]
    weights = [len(part) / sum(map(len, parts)) for part in parts]
    for number in range(rounds):
        locals_ = []
        for stream in streams:
            local = copy.deepcopy(network)
            optimizer = torch.optim.AdamW(_trained(local), weight_decay=0.0)
            for step in range(edges[number], edges[number + 1]):
                rate = _rate(step, steps, recipe.lr)
                _step(local, optimizer, next(stream), rate, recipe.clip_norm)
            locals_.append(_trained(local))
        with torch.no_grad():
            for mean, *each in zip(_trained(network), *locals_, strict=True):
                mean.copy_(sum(w * own for w, own in zip(weights, each, strict=True)))
        if watch is not None:
            watch(number + 1, network)
    return 2 * rounds * len(parts) * _FLOAT_BYTES * trained_numbers(network)


def trained_numbers(network: nn.Module) -> int:
    """Return how many numbers of a network train."""
    return sum(p.numel() for p in _trained(network))


@torch.no_grad()
def predict(network: nn.Module, windows: Windows) -> torch.Tensor:
    """Return a network's predictions in units of the data."""
    parts = [network(history) for history in torch.split(windows.history, 256)]
    return windows.in_units(torch.cat(parts))


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def _steps(own: Windows, recipe: Recipe) -> int:
    return math.ceil(len(own) / recipe.batch_size)


def _rate(step: int, steps: int, peak: float) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batches(own: Windows, size: int, seed: int) -> Iterator[Windows]:
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))
    return (own.take(chosen) for chosen in torch.split(order, size))


def _stream(own: Windows, size: int, seed: int) -> Iterator[Windows]:
    epoch = 0
    while True:
        yield from _batches(own, size, seed * 1009 + epoch)
        epoch += 1


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: Windows, rate: float, clip: float
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = batch.loss(network(batch.history)).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(_trained(network), clip)
    optimizer.step()
