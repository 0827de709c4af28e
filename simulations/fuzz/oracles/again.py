"""The same scenario again: from the start, from a checkpoint, or with what must not matter."""

from __future__ import annotations

import random

import torch

from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.link import Frame
from fedlora.split.pooled import POOLS
from fedlora.tasks import head_trains
from simulations.fuzz.keys_air import BY_CLIENT
from simulations.fuzz.trial import Run, Trial, difference, equal

_BLIND = ("uniform", "random", BY_CLIENT)
"""Strategies that look at no figure of an evaluation."""


def repeat(trial: Trial) -> str | None:
    """Hold a second run, with two clients computing side by side, to the first, bit for bit.

    Where a run can stop and go on, ``resume`` does the same.
    """
    if trial.noisy or _stops(trial):
        return None
    other = trial.again("again", workers=2)
    if not equal(other.adapter, trial.run.adapter):
        return "a second run has another adapter"
    if not _same_heads(other, trial.run):
        return "a second run has other heads"
    where = difference(trial.run.rounds, other.rounds)
    return f"of a second run {where}" if where else ""


def resume(trial: Trial) -> str | None:
    """Hold a run that stopped after a round and went on to one that did not, bit for bit.

    Two of its clients compute side by side. With gradients noised only what it has cost: noise is
    drawn anew by every process.
    """
    if not _stops(trial):
        return None
    unbroken, scenario = trial.run, trial.run.scenario
    stop = 1 + scenario.seed % (scenario.train.rounds - 1)
    place, ledgers = trial.place / "resumed", scenario.privacy.enabled
    first = Run(scenario, place, ledgers=ledgers, workers=2).train(stop)
    second = Run(scenario, place, ledgers=ledgers, workers=2).train()
    if trial.noisy:
        return ""
    if not equal(second.adapter, unbroken.adapter):
        return f"a run that went on after round {stop} has another adapter"
    if not _same_heads(second, unbroken):
        return f"a run that went on after round {stop} has other heads"
    where = difference(unbroken.rounds, first.rounds + second.rounds)
    return f"of a run that went on after round {stop} {where}" if where else ""


def _stops(trial: Trial) -> bool:
    """Tell whether a run can stop after a round, and go on with the same noise."""
    scenario = trial.run.scenario
    mechanism = trial.mechanism
    noised = mechanism is not None and mechanism.noises_gradients
    noised = noised or scenario.privacy.activation_sigma is not None
    return scenario.train.rounds > 1 and not noised  # ``ledgers`` looks at noised ones


def _same_heads(a: Run, b: Run) -> bool:
    """Tell whether all clients' heads are equal bit for bit."""
    pairs = zip(a.heads, b.heads, strict=True)
    return all(torch.equal(x, y) for own, other in pairs for x, y in zip(own, other, strict=True))


def unrelated(trial: Trial) -> str | None:
    """Hold a run with another way to measure, or to save memory, to the same adapter."""
    scenario = trial.run.scenario
    if trial.noisy or scenario.privacy.activation_sigma is not None:
        return None  # evaluation draws noise on activations too
    flips = {"evaluate.baseline": str(not scenario.evaluate.baseline).lower()}
    placed = scenario.compute.device_map or scenario.compute.max_memory
    # Where rows are pooled to one token it is rounded otherwise, as ``ComputeConfig`` says.
    if not placed and trial.federation.server.engine.pool not in POOLS:
        flips["compute.checkpoint"] = str(not scenario.compute.checkpoint).lower()
    if scenario.ranks.strategy in _BLIND:
        flips |= {"evaluate.every": "2", "evaluate.batch_size": "3"}
    key = random.Random(scenario.seed + len(trial.initial)).choice(sorted(flips))
    try:
        other = trial.again("flip", with_overrides(scenario, [f"{key}={flips[key]}"]))
    except FedloraError:
        if scenario.privacy.enabled:
            return None  # a baseline may have to be paid for twice
        raise
    return "" if equal(other.adapter, trial.run.adapter) else f"the adapter depends on {key}"


def without_rank(trial: Trial) -> str | None:
    """Hold a run in which clients of rank 0 send other gradients to the same adapter."""
    scenario = trial.scenario
    options = scenario.ranks.options
    shared = head_trains(scenario) and scenario.head.share != "personal"
    if scenario.ranks.strategy != BY_CLIENT or options.get("turn") or shared:
        return None
    ranks = options["ranks"]
    nobody = {n for n in range(scenario.federation.clients) if ranks[n % len(ranks)] == 0}
    if not nobody or scenario.privacy.enabled or scenario.lora.also:  # which pass at any rank
        return None

    def alter(number: int, reply: Frame) -> Frame:
        tensors = dict(reply.tensors)
        for name in ("gradient", "gradient.scale") if number in nobody else ():
            if name in tensors:
                tensors[name] = tensors[name] * (3 if name.endswith("scale") else -3)
        return Frame(reply.kind, reply.client, reply.seq, reply.fields, tensors)

    other = trial.again("altered", alter=alter)
    same = equal(other.adapter, trial.run.adapter)
    return "" if same else "the adapter follows the gradients of a client of rank 0"
