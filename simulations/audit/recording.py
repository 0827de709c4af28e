"""Run a scenario in this process and keep what the server received, with the truth beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from clients.build import EdgeParts, hello, load_parts
from clients.edge_client import EdgeClient
from clients.simulated_data import SimulatedData
from fedlora.batch_order import BatchStream
from fedlora.config import PAYLOADS, PrivacyPolicy, Scenario
from fedlora.link import Frame, LocalLink, create_codec, edge_executor, messages as m, unpack
from fedlora.privacy.mechanisms import mechanism_of, zero_sum_basis
from fedlora.server.compute import AdapterState
from fedlora.server.run import ServerRun
from fedlora.tasks import Record as DataRecord, Sample
from simulations.in_process import Record
from simulations.noisy_activations import NoisyActivations

Advance = Callable[[], None]


@dataclass(frozen=True)
class Upload:
    """One client's answer to a step, as the server sees it, and what it was made of.

    Attributes
    ----------
    client, samples
        Whose it is, and the numbers of the samples in the client's data.
    lengths
        Tokens of each sample.
    z
        Representation that the server had sent, shape (rows, width): a row for each sample where
        the server pools, else for each token.
    weight
        Weight of the shared head that went with it; None where heads are personal.
    gradient
        What was uploaded, shape (rows, released width).
    activation
        What was uploaded before, shape (tokens, width).
    truth
        The samples themselves, to judge attacks by.
    """

    client: str
    samples: tuple[int, ...]
    lengths: tuple[int, ...]
    z: torch.Tensor
    weight: torch.Tensor | None
    gradient: torch.Tensor
    activation: torch.Tensor
    truth: tuple[Sample, ...]

    def sums(self) -> torch.Tensor:
        """Return each sample's gradient, summed over its rows: (samples, released width)."""
        if len(self.gradient) == len(self.samples):
            return self.gradient
        parts = torch.split(self.gradient, list(self.lengths))
        return torch.stack([part.sum(0) for part in parts])


@dataclass(frozen=True)
class Observed:
    """A finished run and its uploads.

    Attributes
    ----------
    parts
        The public ends of the model.
    data
        Who holds what.
    server
        The run.
    clients
        To judge attacks by.
    uploads
        In the order of arrival.
    last_adapter
        The factors that the last step's uploads answered to.
    metric, metric_name
        Of the evaluation at the end; None without one.
    """

    parts: EdgeParts
    data: SimulatedData
    server: ServerRun
    clients: list[EdgeClient]
    uploads: list[Upload]
    last_adapter: AdapterState
    metric: float | None
    metric_name: str


class PlantedData(SimulatedData):
    """Data in which some training records carry a label of the auditor's choice.

    Parameters
    ----------
    scenario, clients
        See ``SimulatedData``.
    planted
        For each client, the label of some of its training rows by their number.
    evaluate
        Whether clients have held-out rows.
    """

    def __init__(
        self,
        scenario: Scenario,
        clients: int,
        planted: Mapping[int, Mapping[int, str]],
        *,
        evaluate: bool = True,
    ) -> None:
        super().__init__(scenario, clients)
        self._planted = planted
        self._evaluate = evaluate

    def rows_of(self, client: int) -> tuple[list[DataRecord], list[DataRecord]]:
        """See ``SimulatedData``."""
        train, held_out = super().rows_of(client)
        for row, label in self._planted.get(client, {}).items():
            train[row] = {**train[row], self.label_column: label}
        return train, held_out if self._evaluate else []


class _Recorder(Record):
    """Reports each step, and keeps the adapter that the step after it answers to."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self.server: ServerRun | None = None
        self.adapters: list[AdapterState] = []
        self._advance = advance

    def append_event(self, event: str, /, **fields: Any) -> None:
        """See ``Recorder``."""
        if event == "step":
            assert self.server is not None
            self.adapters = [*self.adapters[-1:], self.server.engine.adapter()]
            self._advance()


def observe(
    scenario: Scenario,
    *,
    planted: Mapping[int, Mapping[int, str]] | None = None,
    policies: Mapping[int, PrivacyPolicy] | None = None,
    activation_sigma: float | None = None,
    evaluate: bool = True,
    advance: Advance = lambda: None,
) -> Observed:
    """Run a scenario and tap every client's link.

    Parameters
    ----------
    scenario
        Without a baseline, so that every step is a training step, and of one round.
    planted
        See ``PlantedData``.
    policies
        Each client's privacy, by its number, in place of the scenario's.
    activation_sigma
        Noise on activations alone; see ``NoisyActivations``.
    evaluate
        Whether the clients have held-out rows to evaluate.
    advance
        Called after every step.
    """
    # What is named has been seen before; each upload is to be looked at whole.
    scenario = replace(scenario, link=replace(scenario.link, reuse=False, targets_only=False))
    data = PlantedData(scenario, scenario.federation.clients, planted or {}, evaluate=evaluate)
    parts = load_parts(scenario, data.labels)
    recorder = _Recorder(advance)
    recorder.server = server = ServerRun(scenario, recorder)
    recorder.adapters = [server.engine.adapter()]
    executor = edge_executor(scenario.compute.threads or os.cpu_count() or 1)
    clients, uploads = [], list[Upload]()
    for number in range(scenario.federation.clients):
        own = parts
        if policies is not None:
            private = replace(parts.scenario, privacy=policies[number])
            own = replace(parts, scenario=private)
        client = data.build(own, number)
        if activation_sigma is not None:
            clip_norm = scenario.privacy.activation_clip_norm
            client.use(NoisyActivations(activation_sigma, clip_norm))
        clients.append(client)
        server.admit(opening := hello(parts, client))
        server.join(LocalLink(client.name, _tapped(client, uploads), executor), opening)
    server.training.run()
    server.end()
    executor.shutdown()
    last = recorder.rounds[-1]
    return Observed(
        parts,
        data,
        server,
        clients,
        uploads,
        recorder.adapters[0],
        last.get("metric"),
        str(last.get("metric_name") or "metric"),
    )


def sample_order(scenario: Scenario, rows: int, client: int, exchanges: int) -> list[int]:
    """Return the numbers of a client's samples in the order of their uploads."""
    stream = BatchStream(range(rows), scenario.train.batch_size, scenario.seed, client)
    return [number for _ in range(exchanges) for number in stream.indices()]


def _tapped(client: EdgeClient, uploads: list[Upload]) -> Callable[[Frame], Frame]:
    """Return a handler that notes what passes."""
    scenario, samples = client.scenario, client.door.truth(client.train)
    link, own = scenario.link, client.model.front.embedding
    codecs = {p: create_codec(**link.codec(p), vocabulary=own) for p in PAYLOADS}
    order = BatchStream(samples, scenario.train.batch_size, scenario.seed, int(client.name))
    classes = len(client.model.task.labels)
    width, rest = client.model.width, None
    if scenario.link.r_cut:  # what is left of the head at the client is the head that is attacked
        width, rest = scenario.link.r_cut, zero_sum_basis(classes).float()
    mechanism = mechanism_of(scenario.privacy)
    released = width if mechanism is None else mechanism.width(classes, width)
    front = client.model.front
    up_width = front.tokens.weight.shape[1] if front.blocks is None else front.blocks.width
    open_: list[torch.Tensor] = []

    def handle(frame: Frame) -> Frame:
        reply = client.handle(frame)
        if frame.kind == m.STEP and reply.kind == m.GRADIENT:
            numbers = order.indices()
            truth = tuple(samples[number] for number in numbers)
            lengths = tuple(len(sample.ids) for sample in truth)
            weight = frame.tensors.get(m.HEAD_WEIGHT + "weight", rest)
            rows = sum(client.model.rows_of(lengths))
            z = unpack(frame.tensors, "representation", codecs["representation"], (rows, width))
            uploads.append(
                Upload(
                    client.name,
                    tuple(numbers),
                    lengths,
                    z.detach(),
                    weight,
                    unpack(reply.tensors, "gradient", codecs["gradient"], (rows, released)),
                    open_.pop(),
                    truth,
                )
            )
        if "lengths" in reply.tensors and frame.kind not in (m.EVAL_BEGIN, m.EVAL):
            tokens = int(reply.tensors["lengths"].sum())
            shape = (tokens, up_width)
            open_[:] = [unpack(reply.tensors, "activation", codecs["activation"], shape)]
        return reply

    return handle
