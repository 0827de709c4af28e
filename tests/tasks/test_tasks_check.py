"""``check_task`` passes what is sound and names what is broken."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedlora.config import with_overrides
from fedlora.scenarios import find_scenario
from fedlora.tasks import Sample, TaskLoss
from fedlora.tasks.check import check_task
from simulations.examples.readings import Readings


def scenario(*sets, name="quickstart"):
    return with_overrides(find_scenario(name), list(sets))


@pytest.mark.parametrize(
    "tried",
    [
        scenario(),
        scenario("task.kind=causal_lm", "data.label="),
        scenario(name="csi-prediction"),
        scenario("task.kind=simulations.examples.readings:Readings", "data.test="),
    ],
)
def test_tasks_that_ship_are_sound(tried):
    assert check_task(tried) == []


class Unset(Readings):
    pooled = None


class Batch(Readings):
    """Normalises over all records that it is given."""

    def samples(self, records, tokenizer, data):
        found = super().samples(records, tokenizer, data)
        mean = sum(own.values.mean() for own in found) / len(found) if found else 0
        return [replace(own, values=own.values - mean) for own in found]


class BatchFront(Readings):
    def embed(self, front, samples):
        made = super().embed(front, samples)
        return made - made.mean(0)


class Lost(Readings):
    def samples(self, records, tokenizer, data):
        return [replace(own, source=-1) for own in super().samples(records, tokenizer, data)]


class Changes(Readings):
    def samples(self, records, tokenizer, data):
        found = super().samples(records, tokenizer, data)
        for record in records:
            record["readings"] = record["readings"][::-1]
        return found


class Draws(Readings):
    def samples(self, records, tokenizer, data):
        found = super().samples(records, tokenizer, data)
        return [replace(own, values=own.values + torch.rand(1)) for own in found]


class Nothing(Readings):
    def samples(self, records, tokenizer, data):
        return []


class Invents(Readings):
    def samples(self, records, tokenizer, data):
        return super().samples(records, tokenizer, data) or [
            Sample((), torch.zeros(1), 0, values=torch.zeros(5, 3))
        ]


class Unseeded(Readings):
    def head(self, checkpoint, dtype, width, seed):
        return nn.Linear(width, 1)


class UnseededFront(Readings):
    def front(self, checkpoint, dtype, width, seed):
        return nn.Linear(3, width)


class Narrow(Readings):
    def front(self, checkpoint, dtype, width, seed):
        return super().front(checkpoint, dtype, width + 1, seed)


class Mean(Readings):
    def loss(self, head, z, samples, *, sample_mean):
        found = super().loss(head, z, samples, sample_mean=sample_mean)
        return TaskLoss(found.total / len(samples), found.weight, found.gradient / len(samples))


class Doubled(Readings):
    def loss(self, head, z, samples, *, sample_mean):
        found = super().loss(head, z, samples, sample_mean=sample_mean)
        return replace(found, gradient=2 * found.gradient)


class Shape(Readings):
    def loss(self, head, z, samples, *, sample_mean):
        found = super().loss(head, z, samples, sample_mean=sample_mean)
        return replace(found, gradient=found.gradient.sum(0))


class Frozen(Readings):
    def loss(self, head, z, samples, *, sample_mean):
        held = [p.requires_grad_(False) for p in head.parameters()]
        found = super().loss(head, z, samples, sample_mean=sample_mean)
        for parameter in held:
            parameter.requires_grad_(True)
        return found


class Replaces(Readings):
    def loss(self, head, z, samples, *, sample_mean):
        head.zero_grad()
        return super().loss(head, z, samples, sample_mean=sample_mean)


class Trusts(Readings):
    def read_counts(self, value):
        return super().read_counts({**self.told, **value} if isinstance(value, dict) else None)

    def measure(self, head, z, samples):
        counts = super().measure(head, z, samples)
        self.told = json.loads(json.dumps(counts.to_dict()))
        return counts


class Crashes(Readings):
    def read_counts(self, value):
        return super().read_counts(dict(value))


class Exits(Readings):
    def read_counts(self, value):
        raise SystemExit(0)


class ExitsInLoss(Readings):
    def loss(self, head, z, samples, *, sample_mean):
        raise SystemExit(0)


class Averages(Readings):
    def measure(self, head, z, samples):
        return super().measure(head, z.mean(0).expand_as(z), samples)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Unset, "pooled is not set"),
        (Batch, "a record's samples depend on the records beside it"),
        (BatchFront, "a sample's vectors depend on the samples beside it"),
        (Lost, "the source -1 of 24 records"),
        (Changes, "samples has changed the records"),
        (Draws, "gave others for the same records"),
        (Nothing, "samples made nothing of 24 records"),
        (Invents, "returns a sample with the source 0 from samples() of 0 records"),
        (Unseeded, "head gave other weights for the same seed"),
        (UnseededFront, "front gave other weights for the same seed"),
        (Narrow, "it was refused: the front of task.kind"),
        (Mean, "expected unreduced sums"),
        (Doubled, "expected the derivative of the total"),
        (Shape, "expected finite numbers of the input's shape"),
        (Frozen, "a head that trains no gradient"),
        (Replaces, "put a gradient in the place of the one before"),
        (Trusts, "expected a ProtocolError"),
        (Crashes, "read_counts raised TypeError"),
        (Exits, "SystemExit at test_tasks_check.py"),
        (ExitsInLoss, "SystemExit at test_tasks_check.py"),
        (Averages, "counts of a batch are not the sum"),
    ],
)
def test_a_broken_task_is_named_with_what_was_expected(kind, words, monkeypatch):
    monkeypatch.setattr("fedlora.tasks.check.task_class", lambda name: kind)
    findings = check_task(scenario("task.kind=classification", "data.test="))
    assert findings and words in findings[0], findings
    assert not any("\n" in text for text in findings)
