"""Training equals that of the undivided model in plain PEFT."""

from __future__ import annotations

import torch

from fedlora.config import Scenario
from simulations.fuzz.keys_air import BY_CLIENT
from simulations.fuzz.reference import Ranks, Reference
from simulations.fuzz.trial import Trial

_MOST_LEARNT = 0.21  # of lr times steps; beyond it rounding has grown into something else
_MOST_STEPS = 4


def unsplit(trial: Trial) -> str | None:
    """Hold adapter, heads, embeddings and losses to plain PEFT, one client after the other."""
    if not _applies(trial):
        return None
    reference = Reference(trial, _ranks(trial.scenario)).train()
    return (
        _adapter(trial, reference)
        or _losses(trial, reference)
        or _heads(trial, reference)
        or _embeddings(trial, reference)
    )


def _applies(trial: Trial) -> bool:
    scenario = trial.scenario
    train, robust = scenario.train, scenario.robust
    codecs = {scenario.link.activation, scenario.link.representation, scenario.link.gradient}
    return (
        scenario.model.dtype == "fp32"
        and not scenario.lora.dropout
        and not (robust.enabled or robust.row_clip or robust.head_clip)
        and not scenario.privacy.enabled
        and scenario.link.keep == 1
        and codecs <= {"fp32", "distinct", "tokens"}
        and trial.everybody
        and scenario.ranks.strategy in ("uniform", BY_CLIENT)
        and scenario.ranks.options.get("train") not in ("held", "shared")  # the channel decides
        and max(train.lr, train.head_lr) <= 0.1
        and train.total_steps * train.lr <= _MOST_LEARNT
        and train.total_steps <= _MOST_STEPS
    )


def _ranks(scenario: Scenario) -> Ranks:
    options = scenario.ranks.options
    table = [options.get("r", scenario.lora.r_max)]
    if scenario.ranks.strategy == BY_CLIENT:
        table = options["ranks"]
    elif options.get("train") == "r_max" or options.get("train_at_r_max"):
        table = [scenario.lora.r_max]
    turn = bool(options.get("turn"))
    return lambda round_, client: table[(client + turn * round_) % len(table)]


def _adapter(trial: Trial, reference: Reference) -> str:
    # Where a gradient is next to nothing AdamW makes a whole step of its rounding, as from the
    # first token of a decoder, which sees itself alone, to its queries and keys.
    near = 0.02 * trial.scenario.train.lr
    found = trial.run.adapter
    worst, off = "", 0.0
    for name, expected in reference.adapter.items():
        apart = (expected - found[name]).abs() > near
        part = float(apart.float().mean())
        if part > off and int(apart.sum()) > 1:  # one number is many of a small matrix
            worst, off = name, part
    if off > 0.02 and not _unseen(trial, worst):
        return f"{off:.0%} of {worst} differ from plain PEFT's"
    return ""


def _unseen(trial: Trial, name: str) -> bool:
    """Tell whether no text is long enough for attention to choose, so that its inputs are idle."""
    longest = max(len(s.ids) for c in trial.federation.clients for s in trial.samples(c))
    return longest < 3 and any(part in name for part in ("q_", "k_", "query", "key", "qkv", "attn"))


def _losses(trial: Trial, reference: Reference) -> str:
    pairs = zip(trial.run.losses(), reference.losses, strict=False)
    for step, (own, expected) in enumerate(pairs, 1):
        if abs(own - expected) > 1e-3 * max(1.0, abs(expected)):
            return f"the loss of step {step} is {own:.6g}, in plain PEFT {expected:.6g}"
    return ""


def _heads(trial: Trial, reference: Reference) -> str:
    own = trial.run.heads
    expected = reference.heads * (len(own) if reference.shared else 1)
    for client, (head, other) in enumerate(zip(own, expected, strict=True)):
        if not _close(head[0], other):
            return f"the head of client {client} is not that of plain PEFT"
    return ""


def _embeddings(trial: Trial, reference: Reference) -> str:
    for client, table in enumerate(reference.tables):
        own = trial.federation.clients[client].model.front.tokens.weight.detach()
        if not _close(own, table):
            return f"the token embedding of client {client} is not that of plain PEFT"
    return ""


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float(torch.dist(a.float(), b)) <= 1e-3 * float(b.norm().clamp_min(1e-9))
