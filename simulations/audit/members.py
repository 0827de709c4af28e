"""Membership inference: whose samples a final model was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedlora.checks import finite
from fedlora.report import RunFolder
from fedlora.tasks import Record as DataRecord, Sample
from simulations.audit.attacks.auc import auc
from simulations.audit.attacks.membership import (
    calibrated_scores,
    likelihood_ratio_scores,
    loss_scores,
)
from simulations.audit.canaries import Canary
from simulations.audit.final_model import Model, losses
from simulations.audit.recording import Observed, sample_order

MEMBERS = 400
"""Most members, and most non-members, that the attack is judged on."""

_LEAST_PART = 4


@dataclass(frozen=True)
class Pool:
    """Whose membership is guessed, and what the attacker has of its own.

    Attributes
    ----------
    members, outsiders
        Samples that were trained on, and that were not.
    own
        The attacker's own records of the same kind.
    other_file
        Whether outsiders come from another file than members, so that what tells the files apart
        looks like membership.
    """

    members: list[Sample]
    outsiders: list[Sample]
    own: list[DataRecord]
    other_file: bool = False

    @property
    def samples(self) -> list[Sample]:
        """All of them, members first."""
        return [*self.members, *self.outsiders]


def trained_rows(folder: RunFolder) -> dict[int, int]:
    """Return on how many rows each client of a run was trained up to the adapter that it left.

    One that was trained on twice counts twice.
    """
    kept = finite((folder.read_summary() or {}).get("kept_round"))
    rows: Counter[int] = Counter()
    for record in folder.read_metrics():
        if kept is not None and record.get("round", 0) > kept:
            break
        for client, own in (record.get("clients") or {}).items():
            rows[int(client)] += own.get("rows", 0)
    return rows


def pool(
    observed: Observed, canaries: Sequence[Canary], trained: Mapping[int, int] | None = None
) -> Pool:
    """Divide what the clients hold into members, outsiders and the attacker's own text.

    Outsiders are training samples that no step has reached, where there are enough: they are of one
    kind with the members. Else they are held-out rows.

    Parameters
    ----------
    observed
        A tapped run.
    canaries
        Left out, since their labels are wrong.
    trained
        On how many rows each client was trained, see ``trained_rows``; left out, those of the
        tapped steps.
    """
    scenario = observed.server.scenario
    strange = {(c.client, c.row) for c in canaries}
    clients = len(observed.clients)
    share = max(1, MEMBERS // clients)
    found, held = Pool([], [], []), list[Sample]()
    for number, client in enumerate(observed.clients):
        samples = client.door.truth(client.train)
        steps = scenario.train.total_steps * scenario.train.accumulate
        if trained is not None:
            steps = trained.get(number, 0) // min(scenario.train.batch_size, len(samples))
        reached = set(sample_order(scenario, len(samples), number, steps))
        usual = [i for i in range(len(samples)) if (number, i) not in strange]
        inside = [i for i in usual if i in reached]
        rest = [i for i in usual if i not in reached]
        rng = np.random.default_rng(number)
        for rows, chosen in ((inside, found.members), (rest, found.outsiders)):
            picked = rng.permutation(len(rows))[:share]
            chosen.extend(samples[rows[i]] for i in picked.tolist())
        held_out = observed.data.rows_of(number)[1]
        half = len(held_out) // 2
        found.own.extend(held_out[half:])
        encode = observed.parts.model.task.samples
        held.extend(encode(held_out[:half], observed.parts.tokenizer, scenario.data)[:share])
    if len(found.outsiders) < len(found.members) // _LEAST_PART:
        return replace(found, outsiders=held, other_file=bool(scenario.data.test))
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
