"""Activations that the server keeps are named and not sent again: no bit of the result changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.federation import Federation, scenario

from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms
from clients.release.activations import NoisyActivations
from fedlora.link import Frame, messages as m
from fedlora.server.exchange.kept_rows import KeptRows
from simulations import in_process
from simulations.in_process import Handler, Record

LONG = ["train.rounds=3", "train.steps=8", "evaluate.baseline=true"]


def result(config: Any, **options: Any) -> tuple[Any, Any]:
    federation = Federation(config, **options).run()
    rounds = [(r["loss"], r["metric"], r.get("train_loss")) for r in federation.recorder.rounds]
    return federation.server.engine.adapter(), rounds


def equal(first: Any, second: Any) -> bool:
    (one, rounds), (other, theirs) = first, second
    return rounds == theirs and all(
        torch.equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
    )


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", ["head.share=step"]),
        ("gpt2", ["task.kind=causal_lm", "link.activation=int8"]),
        ("llama", ["head.share=personal", "model.client_front=1"]),
    ],
)
def test_adapter_and_losses_are_those_of_a_run_that_sends_all_again(tiny, records, family, task):
    config = scenario(tiny[family], records, *task, *LONG)
    sent = dataclasses.replace(config, link=dataclasses.replace(config.link, reuse=False))
    assert equal(result(config), result(sent))


def test_what_does_not_fit_is_sent_again_and_the_bound_holds(tiny, records, monkeypatch):
    config = scenario(tiny["gpt2"], records, *LONG)
    whole = result(config)
    most = 3000
    monkeypatch.setattr(
        KeptRows, "__init__", lambda self, _, files, own=KeptRows.__init__: own(self, most, files)
    )
    federation = Federation(config).run()
    kept = federation.server.training.batches.kept
    assert kept is not None
    sizes = [sum(row.nbytes for row in own.rows.values()) for own in kept._own.values()]
    assert sizes == [own.nbytes for own in kept._own.values()]
    assert all(1000 < size <= most for size in sizes)
    assert equal((federation.server.engine.adapter(), whole[1]), whole)
    bits = federation.server.air.ledger.totals()["bits"]["up"]["activation"]
    assert bits > 0  # the baseline has not brought all of them


@pytest.mark.parametrize("noised", [False, True])
def test_rows_that_are_lost_a_hundred_times_are_the_same_bytes_and_paid_for_once(
    tiny, records, monkeypatch, noised
):
    private = ["privacy.epsilon=50", "privacy.delta=1e-5", "privacy.activation_sigma=40"]
    config = scenario(
        tiny["gpt2"], records, *LONG, "train.steps=13", *(private if noised else ["train.lr=0.001"])
    )
    rows: dict[int, bytes] = {}
    lost, charged = [0], []

    def watched(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            reply = client.handle(frame)
            lost[0] += frame.kind == m.AGAIN
            if "ids" in reply.tensors and "activation" in reply.tensors:
                fresh = reply.tensors["fresh"].bool()
                sizes = reply.tensors["lengths"].tolist()
                parts = torch.split(reply.tensors["activation"], sizes)
                for own, part in zip(reply.tensors["ids"][fresh].tolist(), parts, strict=True):
                    assert rows.setdefault(own, part.numpy().tobytes()) == part.numpy().tobytes()
            return reply

        return handle

    real = NoisyActivations._release
    monkeypatch.setattr(
        NoisyActivations,
        "_release",
        lambda self, e, lengths, chosen, sigma, noises: (
            charged.extend(chosen) or real(self, e, lengths, chosen, sigma, noises)
        ),
    )
    federation = Federation(config, wrap=watched)
    batches = federation.server.training.batches
    told = batches.fields

    def forgetful(client: str) -> dict[str, Any]:
        fields = told(client)
        assert batches.kept is not None
        batches.kept.evict(client)
        return fields

    monkeypatch.setattr(batches, "fields", forgetful)
    federation.run()
    assert lost[0] > 100
    if noised:
        assert len(charged) == len(rows) == sum(len(c.train) for c in federation.clients)
    else:
        assert equal(result(config), (federation.server.engine.adapter(), [
            (r["loss"], r["metric"], r.get("train_loss")) for r in federation.recorder.rounds
        ]))  # fmt: skip


ILL = [
    ({"ids": torch.zeros(3)}, "identifiers as an int64 vector"),
    ({"ids": torch.zeros(2, dtype=torch.int64)}, "a uint8 for each identifier"),
    ({"fresh": torch.full((3,), 2, dtype=torch.uint8)}, "are said to be new"),
    ({"fresh": torch.zeros(3, dtype=torch.uint8)}, "3 rows are sent where 0 are said to be new"),
    ({"fresh": None}, "a uint8 for each identifier"),
    ({"ids": None}, "identifiers as an int64 vector"),
]


@pytest.mark.parametrize(("change", "words"), ILL, ids=[words for _, words in ILL])
def test_names_that_are_none_cost_their_sender_its_place_alone(tiny, records, change, words):
    def hostile(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            reply = client.handle(frame)
            if client.name == "1" and frame.kind == m.BATCH:
                tensors = {**reply.tensors, **change}
                tensors = {name: t for name, t in tensors.items() if t is not None}
                reply = dataclasses.replace(reply, tensors=tensors)
            return reply

        return handle

    federation = Federation(scenario(tiny["gpt2"], records), wrap=hostile).run()
    assert words in federation.server.cohort.lost["1"]
    assert federation.server.cohort.clients == ["0", "2"]


def test_a_row_of_another_client_is_neither_read_nor_poisoned(tiny, records):
    """Who names the identifiers of another, or sends rows under them, changes nothing of its."""
    stolen: list[torch.Tensor] = []

    def hostile(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            if client.name == "2" and frame.kind == m.AGAIN:
                theirs = {"ids": frame.tensors["ids"]}
                assert torch.equal(theirs["ids"], stolen[0])  # nothing of the other's is there
            reply = client.handle(frame)
            if frame.kind == m.BATCH and client.name == "0":
                stolen.append(reply.tensors["ids"])
            if frame.kind == m.BATCH and client.name == "2" and stolen:
                tensors = {
                    "ids": stolen[0],
                    "fresh": torch.zeros(len(stolen[0]), dtype=torch.uint8),
                    "lengths": torch.zeros(0, dtype=torch.int32),
                }
                reply = dataclasses.replace(reply, tensors=tensors)
            return reply

        return handle

    federation = Federation(scenario(tiny["gpt2"], records), wrap=hostile, workers=1).run()
    assert stolen
    assert "never sent" in federation.server.cohort.lost["2"]
    assert federation.server.cohort.clients == ["0", "1"]


def test_nothing_is_kept_of_a_client_that_has_left(tiny, records):
    federation = Federation(scenario(tiny["gpt2"], records))
    federation.run()
    kept = federation.server.training.batches.kept
    assert kept is not None and set(kept._own) == {"0", "1", "2"}
    federation.server.cohort.drop("1", "gone")
    kept.retain(federation.server.cohort.clients)
    assert set(kept._own) == {"0", "2"}
    assert kept.told("1", object()) == 0


def test_an_owner_who_forbids_it_names_nothing(tiny, records):
    seen: list[Frame] = []

    def watched(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            reply = client.handle(frame)
            if client.name == "0" and "lengths" in reply.tensors:
                seen.append(reply)
            return reply

        return handle

    config = scenario(tiny["gpt2"], records)
    terms = {0: OwnerTerms(retention=False)}
    server = in_process.Federation(config, Record(), 1, watched, terms).server
    server.training.run()
    assert seen and not any("ids" in reply.tensors for reply in seen)
    kept = server.training.batches.kept
    assert kept is not None and "0" not in kept._own and len(kept._own["1"].rows) > 0


def test_an_embedding_that_trains_is_sent_in_every_step(tiny, records):
    federation = Federation(scenario(tiny["gpt2"], records, "train.embedding=true")).run()
    assert federation.server.training.batches.kept is None


def test_a_server_that_counts_rows_it_was_never_sent_is_refused(tiny, records):
    client = Federation(scenario(tiny["gpt2"], records)).clients[0]
    client.handle(Frame(m.BATCH, fields={"kept": 0}))
    for kept in (4, -1, True, "3"):
        with pytest.raises(Exception, match="the server keeps"):
            client.handle(Frame(m.STEP, fields={"kept": kept, "step": 0}))
