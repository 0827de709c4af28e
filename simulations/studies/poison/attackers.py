"""Clients that answer every training step with a gradient meant to do harm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

import torch

from clients.edge_client import EdgeClient
from fedlora.link import Frame, messages as m
from simulations.in_process import Handler

Poison = Callable[[torch.Tensor, torch.Generator], torch.Tensor]

_HUGE = 1e4
_LARGE = 10.0


def huge(gradient: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the gradient turned round, ten thousand times as long."""
    del generator
    return gradient * -_HUGE


def flipped(gradient: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the gradient turned round, ten times as long."""
    del generator
    return gradient * -_LARGE


def quiet(gradient: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the gradient turned round, of its own length."""
    del generator
    return -gradient


def noise(gradient: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return noise ten times as long as the gradient."""
    drawn = torch.randn(gradient.shape, generator=generator)
    scale: torch.Tensor = _LARGE * gradient.norm() / drawn.norm()
    return drawn * scale


POISONS: Mapping[str, Poison] = {
    "huge": huge,
    "flipped": flipped,
    "quiet": quiet,
    "random": noise,
}


def poisoner(clients: Collection[str], poison: Poison) -> Callable[[EdgeClient], Handler]:
    """Return a wrapper that makes some clients hostile; uploads have to be fp32.

    Gradients at the cut, of a shared head, and how far head weights were moved are all poisoned. In
    all else, evaluation included, they behave.
    """

    def wrap(client: EdgeClient) -> Handler:
        if client.name not in clients:
            return client.handle
        generator = torch.Generator().manual_seed(client.door.truth(client.train)[0].ids[0])
        begun: dict[str, torch.Tensor] = {}

        def handle(frame: Frame) -> Frame:
            reply = client.handle(frame)
            tensors = dict(reply.tensors)
            if frame.kind in (m.PHASE, m.ROUND):
                begun.update(
                    (m.HEAD_WEIGHT + n, p.detach().clone())
                    for n, p in client.head.module.named_parameters()
                )
            for name, tensor in reply.tensors.items():
                if frame.kind == m.STEP and (
                    name == "gradient" or name.startswith(m.HEAD_GRADIENT)
                ):
                    tensors[name] = poison(tensor, generator)
                elif frame.kind == m.ROUND_END and name in begun:
                    tensors[name] = begun[name] + poison(tensor - begun[name], generator)
            return dataclasses.replace(reply, tensors=tensors)

        return handle

    return wrap
