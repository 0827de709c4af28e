"""Membership inference: whose samples a final model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedlora.privacy.attacks.auc import auc
from fedlora.privacy.attacks.membership import (
    calibrated_scores,
    likelihood_ratio_scores,
    loss_scores,
)
from fedlora.tasks.base import Sample
from fedlora.tasks.data import Record as DataRecord
from simulations.audit.canaries import Canary
from simulations.audit.final_model import Model, losses
from simulations.audit.tap import Observed, sample_order

MEMBERS = 400
"""Most members, and most non-members, that the attack is judged on."""


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
        order = (
            range(len(samples)) if whole else sample_order(scenario, len(samples), number, steps)
        )
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
