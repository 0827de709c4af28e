"""A language model's representations and gradients travel where something is learnt, alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.federation import SEPARATOR, Federation, scenario

from clients.edge_client import EdgeClient
from fedlora.link import Frame, messages as m
from fedlora.tasks import IGNORED
from simulations.in_process import Handler

LANGUAGE = ["task.kind=causal_lm", "data.label=", f"data.prompt_separator={SEPARATOR}"]


def result(config: Any) -> tuple[Any, Any]:
    federation = Federation(config).run()
    rounds = [(r["loss"], r["metric"], r.get("train_loss")) for r in federation.recorder.rounds]
    return federation.server.engine.adapter(), rounds


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gpt2", ["link.gradient=bf16", "robust.row_clip=0.01"]),
        ("llama", ["link.representation=int8", "train.accumulate=2"]),
        ("opt", ["train.embedding=true"]),
    ],
)
def test_adapter_and_losses_are_those_of_a_run_that_sends_every_token(tiny, records, family, more):
    config = scenario(tiny[family], records, *LANGUAGE, *more)
    link = dataclasses.replace(config.link, targets_only=False)
    one, rounds = result(config)
    other, theirs = result(dataclasses.replace(config, link=link))
    assert rounds == theirs
    for name in one:
        assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))


@pytest.mark.parametrize("embedding", ["train.embedding=false", "train.embedding=true"])
def test_what_travels_is_what_is_learnt(tiny, records, embedding):
    seen: list[tuple[Frame, Frame, int]] = []

    def watched(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            batch = list(client._batch)
            reply = client.handle(frame)
            if frame.kind == m.STEP:
                samples = client.door.truth(client.train)
                learnt = sum(t != IGNORED for i in batch for t in samples[i].target)
                assert learnt < sum(len(samples[i].ids) for i in batch) - len(batch)
                seen.append((frame, reply, learnt))
            return reply

        return handle

    Federation(scenario(tiny["gpt2"], records, *LANGUAGE, embedding), wrap=watched).run()
    assert len(seen) == 2 * 3 * 3
    for frame, reply, learnt in seen:
        assert len(frame.tensors["representation"]) == learnt
        assert len(reply.tensors["gradient"]) == learnt


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ([*LANGUAGE, "model.client_back=1"], False),  # its own attention looks at every token
        ([*LANGUAGE, "privacy.sigma=2", "privacy.delta=1e-5", "privacy.release=full"], False),
        (["data.label=label"], False),
        (LANGUAGE, True),
    ],
    ids=["client blocks", "privacy", "classification", "language"],
)
def test_which_tokens_are_learnt_is_told_where_it_saves_something_alone(tiny, records, task, told):
    replies: list[Frame] = []

    def watched(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            if frame.kind in (m.BATCH, m.STEP, m.EVAL_BEGIN):  # also where a server asks for it
                frame = dataclasses.replace(frame, fields={**frame.fields, "targets": True})
            replies.append(client.handle(frame))
            return replies[-1]

        return handle

    Federation(scenario(tiny["gpt2"], records, *task), wrap=watched).run()
    assert any("targets" in reply.tensors for reply in replies) == told


ILL = [
    (lambda own: own[:-1], "is told by a bit for each"),
    (lambda own: own.float(), "is told by a bit for each"),
    (lambda own: own * 0, "of which no token is learnt"),
]


@pytest.mark.parametrize(("change", "words"), ILL)
def test_bits_that_are_none_cost_their_sender_its_place_alone(tiny, records, change, words):
    def hostile(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            reply = client.handle(frame)
            if client.name == "1" and "targets" in reply.tensors:
                tensors = {**reply.tensors, "targets": change(reply.tensors["targets"])}
                reply = dataclasses.replace(reply, tensors=tensors)
            return reply

        return handle

    federation = Federation(scenario(tiny["gpt2"], records, *LANGUAGE), wrap=hostile).run()
    assert words in federation.server.cohort.lost["1"]
    assert federation.server.cohort.clients == ["0", "2"]
