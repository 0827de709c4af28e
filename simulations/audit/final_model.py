"""Final models as an attacker has them: the run's, the one in a run folder, and references."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from clients.build import EdgeParts, load_parts
from clients.simulated_data import SimulatedData
from fedlora.config import FederationConfig, PartitionConfig, PrivacyPolicy, RanksConfig
from fedlora.errors import FedloraError
from fedlora.lora.export import Adapter
from fedlora.report import RunFolder
from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.tasks import Record as DataRecord, Sample, head_trains
from simulations.audit.recording import Advance, Observed
from simulations.in_process import Record, connect

_ROWS, _HEAD_STEPS = 128, 60


@dataclass(frozen=True)
class Model:
    """A final model: the server's engine with its adapter, and a head."""

    engine: SplitEngine
    parts: EdgeParts
    head: nn.Module


def trained_model(observed: Observed) -> Model:
    """Return the model that the tapped run came to, with the head that the server knows."""
    head = observed.server.training.head
    parts = observed.parts
    if head is None and not head_trains(parts.scenario):
        return Model(observed.server.engine, parts, observed.clients[0].head.module)
    if head is None:
        return _with_own_head(observed.server.engine, parts, _held_out(observed))
    return Model(observed.server.engine, parts, _linear(head.linear_weight()))


def stored_model(observed: Observed, folder: RunFolder) -> Model:
    """Return the model that a run folder holds; personal heads are replaced by the attacker's own.

    Raises
    ------
    FedloraError
        When its adapter or head cannot be read.
    """
    adapter = Adapter.load(folder.adapter)
    engine, parts = observed.server.engine, observed.parts
    by_name = {
        name.removeprefix(engine.blocks.family.prefix): f for name, f in adapter.factors.items()
    }
    by_name |= adapter.factors
    missing = [p.name for p in engine.projections if p.name not in by_name]
    if missing or adapter.r_max != engine.r_max:
        raise FedloraError(
            f"{folder.adapter} has rank {adapter.r_max} and lacks {len(missing)} projections, so "
            "it does not fit the run's scenario.toml; give the folder as the run left it"
        )
    engine.load_adapter(
        {
            f"{p.name}.{side}": by_name[p.name][i]
            for p in engine.projections
            for i, side in enumerate("AB")
        }
    )
    if not head_trains(parts.scenario):
        return Model(engine, parts, observed.clients[0].head.module)
    path = folder.head
    if not path.exists():
        return _with_own_head(engine, parts, _held_out(observed))
    try:
        with safe_open(path, framework="pt") as file:
            return Model(engine, parts, _linear(file.get_tensor("weight")))
    except (OSError, SafetensorError) as error:
        raise FedloraError(
            f"cannot read {path} ({error}); give the folder of a finished run"
        ) from None


def reference_model(
    observed: Observed, own: Sequence[DataRecord], seed: int, advance: Advance
) -> Model:
    """Train a reference model on half of the attacker's own records, without noise.

    Parameters
    ----------
    observed
        The run whose model is attacked; the reference is trained for as many steps.
    own
        The attacker's records.
    seed
        Of the choice of records and of the training.
    advance
        Called after every step.
    """
    scenario = observed.parts.scenario
    half = np.random.default_rng(seed).permutation(len(own))[: max(1, len(own) // 2)]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "own.jsonl"
        file.write_text("".join(json.dumps(dict(own[i])) + "\n" for i in half.tolist()), "utf-8")
        clients = scenario.federation.clients
        config = replace(
            scenario,
            data=replace(
                scenario.data, train=str(file), test="", columns=(), holdout=0.0, max_rows=0
            ),
            federation=FederationConfig(clients=1),
            partition=PartitionConfig(kind="iid", min_rows=1),
            train=replace(scenario.train, batch_size=scenario.train.batch_size * clients),
            ranks=RanksConfig(),
            privacy=PrivacyPolicy(),
            channel=type(scenario.channel)(),
            seed=seed,
        )
        server = connect(config, _Steps(advance))
        server.training.run()
        server.end()
        parts = load_parts(config, SimulatedData(config, 1).labels)
        head = server.training.head
        if not head_trains(config):
            return Model(server.engine, parts, observed.clients[0].head.module)
        if head is not None:
            return Model(server.engine, parts, _linear(head.linear_weight()))
        own_samples = parts.model.task.samples(
            [own[i] for i in half.tolist()], parts.tokenizer, scenario.data
        )
        return _with_own_head(server.engine, parts, own_samples)


class _Steps(Record):
    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self._advance = advance

    def append_event(self, event: str, /, **fields: object) -> None:
        """See ``Recorder``."""
        if event == "step":
            self._advance()


@torch.no_grad()
def losses(model: Model, samples: Sequence[Sample]) -> torch.Tensor:
    """Return each sample's loss in nats; for language models the mean over its tokens."""
    task = model.parts.model.task
    found = []
    for hidden, sample in zip(_hidden(model, samples), samples, strict=True):
        with torch.enable_grad():
            loss = task.loss(model.head, hidden, [sample], sample_mean=True)
        found.append(loss.total)
    return torch.tensor(found, dtype=torch.float64)


@torch.no_grad()
def _hidden(model: Model, samples: Sequence[Sample]) -> list[torch.Tensor]:
    """Return what the head takes of each sample: (1, width), or (tokens, width)."""
    edge, engine = model.parts.model, model.engine
    found: list[torch.Tensor] = []
    for start in range(0, len(samples), _ROWS):
        part = samples[start : start + _ROWS]
        lengths = [len(s.ids) for s in part]
        e = edge.front(torch.tensor([t for s in part for t in s.ids]), lengths)
        (z,) = engine.forward([ClientRows(e, lengths, engine.full_ranks())], train=False)
        sizes = [1] * len(part) if edge.task.pooled else lengths
        found += torch.split(edge.to_head(z, lengths).float(), sizes)
    return found


def _with_own_head(engine: SplitEngine, parts: EdgeParts, own: Sequence[Sample]) -> Model:
    """Fit a linear head on the attacker's own text, where the clients' heads are personal."""
    model = Model(engine, parts, nn.Identity())
    z = torch.cat(_hidden(model, own))
    labels = torch.tensor([s.target for s in own])
    weight = torch.zeros(len(parts.model.task.labels), z.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=_HEAD_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(z @ weight.T, labels) + 1e-4 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Model(engine, parts, _linear(weight.detach()))


def _held_out(observed: Observed) -> list[Sample]:
    """Return the attacker's own half of the held-out samples."""
    return [
        sample
        for client in observed.clients
        for sample in client.door.truth(client.held_out)[len(client.held_out) // 2 :]
    ]


def _linear(weight: torch.Tensor) -> nn.Module:
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight.data.copy_(weight)
    return head
