"""Membership inference and planted canaries, on the final adapter."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from clients.build import EdgeParts, SimulatedData, load_parts
from fedlora.config import FederationConfig, PartitionConfig, RanksConfig, Scenario
from fedlora.errors import FedloraError
from fedlora.lora.export import Adapter
from fedlora.privacy.attacks.auc import auc
from fedlora.privacy.attacks.canaries import epsilon_lower_bound
from fedlora.privacy.attacks.membership import (
    calibrated_scores,
    likelihood_ratio_scores,
    loss_scores,
)
from fedlora.privacy.policy import PrivacyPolicy
from fedlora.report.run_folder import RunFolder
from fedlora.server.engine import ClientRows, SplitEngine
from fedlora.server.results import head_file
from fedlora.split.edge import pool_packed
from fedlora.tasks.base import Sample, head_trains
from fedlora.tasks.data import Record as DataRecord
from simulations.audit.tap import Advance, Observed, sample_order
from simulations.in_process import Record, connect

MEMBERS = 400
"""Most members, and most non-members, that the attack is judged on."""
CANARIES = 128
_ROWS, _HEAD_STEPS = 128, 60


@dataclass(frozen=True)
class Model:
    """A final model: the server's engine with its adapter, and a head."""

    engine: SplitEngine
    parts: EdgeParts
    head: nn.Module


@dataclass(frozen=True)
class Pool:
    """Whose membership is guessed, and what the attacker has of its own.

    Attributes
    ----------
    members, outsiders
        Samples that were trained on, and that were not.
    own
        The attacker's own records of the same kind.
    """

    members: list[Sample]
    outsiders: list[Sample]
    own: list[DataRecord]

    @property
    def samples(self) -> list[Sample]:
        """All of them, members first."""
        return [*self.members, *self.outsiders]


@dataclass(frozen=True)
class Canary:
    """A training record whose label is one of two wrong ones, by a coin."""

    client: int
    row: int
    labels: tuple[str, str]
    coin: bool

    @property
    def planted(self) -> str:
        """The label that it was given."""
        return self.labels[self.coin]


def plant(scenario: Scenario, steps: int, seed: int = 0) -> list[Canary]:
    """Choose canaries among the records that so many steps train on, at most a tenth of them."""
    data = SimulatedData(scenario, scenario.federation.clients)
    labels = data.labels
    generator = np.random.default_rng(seed)
    trained = [
        (client, row)
        for client in range(scenario.federation.clients)
        for row in sorted(set(_order(scenario, len(data.rows_of(client)[0]), client, steps)))
    ]
    chosen = generator.permutation(len(trained))[: min(CANARIES, len(trained) // 10)]
    canaries = []
    for index in chosen.tolist():
        client, row = trained[index]
        true = data.rows_of(client)[0][row][data.label_column]
        wrong = [label for label in labels if label != true]
        if len(wrong) < 2:  # two classes: the coin is between the right and the wrong one
            wrong = list(labels)
        first, second = generator.choice(len(wrong), 2, replace=False).tolist()
        coin = bool(generator.random() < 0.5)
        canaries.append(Canary(client, row, (wrong[first], wrong[second]), coin))
    return canaries


def planted(canaries: Sequence[Canary]) -> dict[int, dict[int, str]]:
    """Return the canaries' labels as ``observe`` takes them."""
    found: dict[int, dict[int, str]] = defaultdict(dict)
    for canary in canaries:
        found[canary.client][canary.row] = canary.planted
    return dict(found)


def guess_canaries(
    observed: Observed, canaries: Sequence[Canary], delta: float
) -> dict[str, float]:
    """Guess each canary's coin from the final model, and bound epsilon from below by it.

    Nothing is returned where all coins happen to have fallen alike.
    """
    model = trained_model(observed)
    index = {label: i for i, label in enumerate(observed.parts.model.task.labels)}
    samples = [observed.clients[c.client].batches.samples[c.row] for c in canaries]
    first, second = (
        losses(
            model,
            [Sample(s.ids, index[c.labels[k]]) for s, c in zip(samples, canaries, strict=True)],
        )
        for k in (0, 1)
    )
    scores = (first - second).numpy()
    coins = np.array([c.coin for c in canaries])
    if len(set(coins.tolist())) < 2:
        return {}
    judged = auc(scores, coins)
    # Those whose score is far from the median are the guesses that the attacker is sure of.
    distance = scores - np.median(scores)
    sure = np.argsort(-np.abs(distance))[: len(canaries) // 2]
    correct = int(((distance[sure] > 0) == coins[sure]).sum())
    return {
        "auc": judged.value,
        "low": judged.low,
        "high": judged.high,
        "canaries": len(canaries),
        "guesses": len(sure),
        "correct": correct,
        "epsilon_lower_bound": epsilon_lower_bound(len(canaries), len(sure), correct, delta),
    }


def pool(observed: Observed, canaries: Sequence[Canary], *, whole: bool) -> Pool:
    """Divide what the clients hold into members, outsiders and the attacker's own text.

    Parameters
    ----------
    observed
        A tapped run.
    canaries
        Left out, since their labels are wrong.
    whole
        The model was trained for the whole scenario and not for the tapped steps alone.
    """
    scenario = observed.server.scenario
    strange = {(c.client, c.row) for c in canaries}
    clients = len(observed.clients)
    share = max(1, MEMBERS // clients)
    found = Pool([], [], [])
    for number, client in enumerate(observed.clients):
        samples = client.batches.samples
        steps = scenario.train.total_steps * scenario.train.accumulate
        order = range(len(samples)) if whole else _order(scenario, len(samples), number, steps)
        inside = [i for i in sorted(set(order)) if (number, i) not in strange]
        picked = np.random.default_rng(number).permutation(len(inside))[:share]
        found.members.extend(samples[inside[i]] for i in picked.tolist())
        held_out = observed.data.rows_of(number)[1]
        half = len(held_out) // 2
        found.own.extend(held_out[half:])
        encode = observed.parts.model.task.samples
        outside = encode(held_out[:half], observed.parts.tokenizer, scenario.data)
        found.outsiders.extend(outside[:share])
    return found


def attack(model: Model, pool: Pool, references: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return the AUC of each membership attack.

    Parameters
    ----------
    model
        The final model.
    pool
        Whose membership is guessed.
    references
        Losses of the reference models, as ``losses`` returns them for ``pool.samples``, shape
        (models, samples).
    """
    own = losses(model, pool.samples)
    scores = {
        "loss": loss_scores(own),
        "calibrated": calibrated_scores(own, references),
        "likelihood_ratio": likelihood_ratio_scores(own, references),
    }
    member = np.arange(len(own)) < len(pool.members)
    found = {}
    for name, values in scores.items():
        judged = auc(values.numpy(), member)
        found[name] = {
            "auc": judged.value,
            "low": judged.low,
            "high": judged.high,
            "samples": len(own),
        }
    return found


def trained_model(observed: Observed) -> Model:
    """Return the model that the tapped run came to, with the head that the server knows."""
    head = observed.server.training.head
    parts = observed.parts
    if head is None and not head_trains(parts.scenario.head, parts.model.task):
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
    if not head_trains(parts.scenario.head, parts.model.task):
        return Model(engine, parts, observed.clients[0].head.module)
    path = head_file(folder)
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
        if not head_trains(config.head, parts.model.task):
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
        sizes = lengths
        if edge.server_pools:
            sizes = [1] * len(part)
        else:
            z = edge.back(z, lengths)
            if edge.task.pooled:
                z = pool_packed(z, lengths, model.parts.scenario.task.pool)
                sizes = [1] * len(part)
        found += torch.split(z.float(), sizes)
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
        loss.backward()
        return loss

    optimiser.step(closure)
    return Model(engine, parts, _linear(weight.detach()))


def _held_out(observed: Observed) -> list[Sample]:
    """Return the attacker's own half of the held-out samples."""
    return [s for c in observed.clients for s in c.held_out[len(c.held_out) // 2 :]]


def _linear(weight: torch.Tensor) -> nn.Module:
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight.data.copy_(weight)
    return head


def _order(scenario: Scenario, rows: int, client: int, steps: int) -> list[int]:
    return sample_order(scenario, rows, client, steps)
