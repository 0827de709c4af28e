"""A server that serves its clients one after the other, as published split-learning code does."""

from __future__ import annotations

import torch

from fedlora.link import Batch, Frame, Phase, Step, create_codec, messages as m, pack
from fedlora.server.compute import ClientRows, SharedHead
from fedlora.server.exchange.uploads import (
    Activation,
    read_activation,
    read_gradient,
    read_named,
    read_number,
)
from fedlora.server.run import ServerRun


class InTurn:
    """The same engine, links and checks, but a forward and a backward for each client alone.

    The gradients are added up and make one optimiser step, so that the losses are those of the
    batched server.

    Parameters
    ----------
    server
        A run with its clients connected, which nothing else drives.
    """

    def __init__(self, server: ServerRun) -> None:
        self._server = server
        self._scenario = server.scenario
        link = self._scenario.link
        self._up = create_codec(**link.codec("activation", tokens=False))
        self._down = create_codec(**link.codec("representation"))
        self._back = create_codec(**link.codec("gradient"))
        cohort = server.cohort
        server.air.begin_round(1)
        started = cohort.ask(cohort.clients, Phase("train"))
        weights = read_named(next(iter(started.values())), m.HEAD_WEIGHT, None)
        self._head = SharedHead(weights, self._scenario.train) if weights else None
        self._open = {
            client: self._activation(reply)
            for client, reply in cohort.ask(cohort.clients, Batch()).items()
        }

    def step(self, number: int) -> float:
        """See ``Baseline``."""
        engine, total, weights = self._server.engine, 0.0, 0.0
        for client, batch in self._open.items():
            rows = ClientRows(batch.packed, batch.lengths, engine.full_ranks())
            [z] = engine.forward([rows], train=True)
            reply = self._ask(client, number, z)
            gradient = read_gradient(reply, self._back, (z.shape[0], z.shape[1]))
            weight = read_number(reply, "weight", low=1e-9)
            if self._head:
                self._head.add(
                    client, read_named(reply, m.HEAD_GRADIENT, self._head.shapes), weight
                )
            engine.backward([gradient], [weight])
            self._open[client] = self._activation(reply)
            total, weights = total + read_number(reply, "loss"), weights + weight
        engine.update.step(number, self._head.averaged() if self._head else [])
        if self._head:
            self._head.step(number)
        return total / weights

    def _ask(self, client: str, number: int, z: torch.Tensor) -> Frame:
        shared = self._head.tensors() if self._head else {}
        request = Step(
            number,
            next=True,
            representation=pack("representation", z, self._down),
            head=shared,
        )
        return self._server.cohort.exchange({client: request})[client]

    def _activation(self, reply: Frame) -> Activation:
        return read_activation(
            reply,
            self._up,
            width=self._server.engine.geometry.activation_width,
            max_rows=self._scenario.train.batch_size,
            max_length=self._scenario.task.max_length,
        ).whole()
