"""One client, whatever it answers, neither ends a run nor decides for the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.federation import Federation, same, scenario
from test_training_faults import fields, tampered

from fedlora.link import Frame, messages as m

NO_ROWS = {
    "classification": {"confusion": [[0] * 3] * 3, "loss": 0.0},
    "causal_lm": {"loss": 0.0, "tokens": 0, "correct": 0, "samples": 0},
}


def hand_in(frame: Frame) -> Frame:
    """Add a head to an answer that has none."""
    return dataclasses.replace(frame, tensors={"head_weight.weight": torch.full((3, 32), 7.0)})


def run(config: Any, kind: str, change: Any, client: str) -> Federation:
    return Federation(config, wrap=tampered(kind, change, client=client)).run()


@pytest.mark.parametrize("client", ["0", "1"])
@pytest.mark.parametrize("task", NO_ROWS)
def test_counts_of_no_rows_end_nothing(tiny, records, task, client):
    config = scenario(tiny["gpt2"], records, f"task.kind={task}", "train.steps=1")
    federation = run(config, m.EVAL_BEGIN, counts_of_nothing(task), client)
    assert list(federation.server.cohort.lost) == [client]
    record = federation.recorder.rounds[-1]
    assert len(federation.recorder.rounds) == 2
    assert record["metric"] is not None


def counts_of_nothing(task: str) -> Any:
    def change(frame: Frame) -> Frame:
        return Frame(m.METRICS, frame.client, frame.seq, {"counts": NO_ROWS[task]})

    return change


def test_the_first_client_does_not_choose_the_classes(tiny, records):
    def change(frame: Frame) -> Frame:
        if frame.kind != m.METRICS:
            return frame
        rows = sum(map(sum, frame.fields["counts"]["confusion"]))
        confusion = [[rows, 0], [0, 0]]
        return fields(counts={"confusion": confusion, "loss": 1.0})(frame)

    labels = 'task.labels=["north","south","west"]'
    config = scenario(tiny["gpt2"], records, "train.steps=1", labels)
    federation = run(config, m.EVAL, change, "0")
    assert list(federation.server.cohort.lost) == ["0"]
    assert set(federation.recorder.rounds[-1]["clients"]) == {"1", "2"}


@pytest.mark.parametrize("overrides", [(), ("head.share=step", "head.train=no")], ids=str)
def test_where_no_head_is_shared_nobody_can_hand_one_to_the_others(tiny, records, overrides):
    config = scenario(tiny["gpt2"], records, "train.steps=2", *overrides)
    plain, attacked = Federation(config).run(), run(config, m.PHASE, hand_in, "0")
    assert attacked.server.training.head is None
    assert set(attacked.server.cohort.clients) >= {"1", "2"}
    for client in (1, 2):
        assert torch.equal(attacked.head(client)[0], plain.head(client)[0])
    assert same(attacked.server.engine.adapter(), plain.server.engine.adapter())


@pytest.mark.parametrize("release", ["row_space", "full"])
def test_a_release_as_large_as_floats_go_passes_no_limit(tiny, records, release):
    """What the server computes from it, the gradient of the head above all, may be larger yet."""
    overrides = [
        "head.share=step",
        "privacy.sigma=2.0",
        f"privacy.release={release}",
        "robust.row_clip=0.01",
        "robust.head_clip=0.01",
    ]

    def change(frame: Frame) -> Frame:
        largest = torch.finfo(torch.float32).max
        tensors = {**frame.tensors, "gradient": torch.full_like(frame.tensors["gradient"], largest)}
        return dataclasses.replace(frame, tensors=tensors)

    federation = run(scenario(tiny["gpt2"], records, *overrides), m.STEP, change, "1")
    assert "beyond" in federation.server.cohort.lost["1"]
    assert list(federation.server.cohort.lost) == ["1"]
    for factor in (*federation.server.engine.adapter().values(), federation.head()[0]):
        assert torch.isfinite(factor).all()
