"""Run a scenario in this process and keep what the server received, with the truth beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from clients.batches import BatchStream
from clients.build import EdgeParts, SimulatedData, hello, load_parts
from clients.edge_client import EdgeClient
from fedlora.config import Scenario
from fedlora.link import messages as m
from fedlora.link.codec import create_codec, take
from fedlora.link.frame import Frame
from fedlora.link.local import LocalLink, edge_executor
from fedlora.privacy.head_space import release_width
from fedlora.server.run import ServerRun
from fedlora.tasks.base import Sample
from simulations.in_process import Record


@dataclass(frozen=True)
class Upload:
    """One client's answer to a step, as the server sees it, and what it was made of.

    Attributes
    ----------
    client, samples
        Whose it is, and the numbers of the samples in the client's data.
    z
        Representation that the server had sent, shape (rows, width).
    weight
        Weight of the shared head that went with it; None where heads are personal.
    gradient
        What was uploaded, shape (rows, released width).
    activation
        What was uploaded before, shape (tokens, width).
    truth
        The samples themselves.
    """

    client: str
    samples: tuple[int, ...]
    z: torch.Tensor
    weight: torch.Tensor | None
    gradient: torch.Tensor
    activation: torch.Tensor
    truth: tuple[Sample, ...]


@dataclass(frozen=True)
class Observed:
    """A finished run and its uploads."""

    parts: EdgeParts
    server: ServerRun
    clients: list[EdgeClient]
    uploads: list[Upload]


def observe(scenario: Scenario) -> Observed:
    """Run a scenario in which the server pools, and tap every client's link.

    Parameters
    ----------
    scenario
        Without a baseline, so that every step is a training step.
    """
    data = SimulatedData(scenario, scenario.federation.clients)
    parts = load_parts(scenario, data.labels)
    server = ServerRun(scenario, Record())
    executor = edge_executor(scenario.compute.threads or os.cpu_count() or 1)
    clients, uploads = [], list[Upload]()
    for number in range(scenario.federation.clients):
        client = data.build(parts, number)
        clients.append(client)
        server.admit(opening := hello(parts, client))
        server.join(LocalLink(client.name, _tapped(client, uploads), executor), opening)
    server.training.run()
    server.end()
    return Observed(parts, server, clients, uploads)


def _tapped(client: EdgeClient, uploads: list[Upload]) -> Callable[[Frame], Frame]:
    """Return a handler that notes what passes."""
    scenario, samples = client.scenario, client.batches.samples
    codecs = {
        "activation": create_codec(scenario.link.activation),
        "representation": create_codec(scenario.link.representation),
        "gradient": create_codec(scenario.link.gradient),
    }
    order = BatchStream(samples, scenario.train.batch_size, scenario.seed, int(client.name))
    classes = len(client.model.task.labels)
    policy = scenario.privacy
    width = client.model.width
    released = release_width(policy.release if policy.enabled else "full", classes, width)
    open_: list[torch.Tensor] = []

    def handle(frame: Frame) -> Frame:
        reply = client.handle(frame)
        if frame.kind == m.STEP and reply.kind == m.GRADIENT:
            numbers = order.indices()
            rows = len(numbers)
            uploads.append(
                Upload(
                    client.name,
                    tuple(numbers),
                    take(frame.tensors, "representation", codecs["representation"], (rows, width)),
                    frame.tensors.get(m.HEAD_WEIGHT + "weight"),
                    take(reply.tensors, "gradient", codecs["gradient"], (rows, released)),
                    open_.pop(),
                    tuple(samples[number] for number in numbers),
                )
            )
        if "lengths" in reply.tensors and frame.kind not in (m.EVAL_BEGIN, m.EVAL):
            tokens = int(reply.tensors["lengths"].sum())
            shape = (tokens, client.model.front.weight.shape[1])
            open_[:] = [take(reply.tensors, "activation", codecs["activation"], shape)]
        return reply

    return handle
