"""The client answers what is in order, and refuses the rest by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.build import EdgeParts, build_client
from clients.edge_client import EdgeClient
from clients.edge_model import EdgeModel
from fedlora.config import Scenario, with_overrides
from fedlora.errors import FedloraError, ProtocolError
from fedlora.geometry import Geometry
from fedlora.link import Frame, messages as m
from fedlora.split import Back, Checkpoint, Front
from fedlora.tasks import Classification, Sample

SAMPLES = [Sample(tuple(range(3, 3 + length)), length % 3) for length in (2, 5, 3, 4, 6)]
WIDTH = 32


def edge(folder: Path, *overrides: str, held_out: int = 3) -> EdgeClient:
    config = with_overrides(Scenario(), ["train.batch_size=2", *overrides])
    checkpoint = Checkpoint(folder)
    geometry = Geometry.of(config, checkpoint)
    assert geometry.server_pools and geometry.representation_width == WIDTH
    model = EdgeModel(
        front=Front(checkpoint, geometry.cut, torch.float32),
        back=Back(checkpoint, geometry.cut, torch.float32, final=False),
        task=Classification(config.task, ["a", "b", "c"]),
        geometry=geometry,
    )
    unused: Any = None
    parts = EdgeParts(config, checkpoint, unused, model)
    return build_client(parts, 4, SAMPLES, SAMPLES[:held_out])


@pytest.fixture
def client(checkpoints: dict[str, Path]) -> EdgeClient:
    return edge(checkpoints["gpt2"], "head.share=step")


def z(rows: int = 2, value: float = 0.1) -> dict[str, torch.Tensor]:
    return {"representation": torch.full((rows, WIDTH), value)}


def step(client: EdgeClient, number: int = 0, **fields: Any) -> Frame:
    return client.handle(Frame(m.STEP, "4", 9, {"step": number, **fields}, z()))


def test_answers_carry_the_name_and_the_number_of_the_request(client):
    for number, kind in enumerate((m.WELCOME, m.PHASE, m.BATCH), 40):
        reply = client.handle(Frame(kind, "someone", number))
        assert (reply.client, reply.seq) == ("4", number)


def test_activation_is_the_embedding_of_the_batch(client, checkpoints):
    reply = client.handle(Frame(m.BATCH))
    from transformers import AutoModel

    embedding = AutoModel.from_pretrained(checkpoints["gpt2"]).get_input_embeddings()
    batch = [client.door.truth(client.train)[index] for index in client._batch]
    ids = torch.tensor([token for sample in batch for token in sample.ids])
    assert torch.equal(reply.tensors["activation"], embedding(ids))
    assert reply.tensors["lengths"].tolist() == [len(sample.ids) for sample in batch]


def test_step_answers_gradients_and_the_next_batch(client):
    client.handle(Frame(m.BATCH))
    reply = step(client, next=True)
    assert set(reply.tensors) == {"gradient", "head_gradient.weight", "activation", "lengths"}
    assert reply.fields["weight"] == 2
    assert set(step(client, gradient=False).tensors) == {"head_gradient.weight"}


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([("dance", {}, {})], "knows no request 'dance'"),
        ([(m.STEP, {"step": 0}, z())], "no open batch"),
        ([(m.BATCH, {}, {}), (m.BATCH, {}, {})], "open batch"),
        ([(m.BATCH, {}, {}), (m.STEP, {}, z())], "step as an integer"),
        ([(m.BATCH, {}, {}), (m.STEP, {"step": -1}, z())], "not -1"),
        ([(m.BATCH, {}, {}), (m.STEP, {"step": True}, z())], "not True"),
        ([(m.BATCH, {}, {}), (m.STEP, {"step": 0}, {})], "parts"),
        ([(m.BATCH, {}, {}), (m.STEP, {"step": 0}, z(rows=3))], r"expected \(2, 32\)"),
        ([(m.BATCH, {}, {}), (m.STEP, {"step": 0}, z(value=math.nan))], "NaN"),
        ([(m.EMBEDDING, {"step": 0}, {})], "no batch whose embedding"),
        ([(m.EVAL, {}, z())], "no open evaluation batch"),
        ([(m.EVAL_BEGIN, {"rows": "all"}, {})], "rows as an integer"),
        ([(m.ROUND, {"round": 1.5}, {})], "round as an integer"),
    ],
)
def test_request_that_is_out_of_order_or_shape_is_refused(client, requests, message):
    *before, (kind, fields, tensors) = requests
    for earlier, its_fields, its_tensors in before:
        client.handle(Frame(earlier, "4", 0, its_fields, its_tensors))
    with pytest.raises(ProtocolError, match=message):
        client.handle(Frame(kind, "4", 1, fields, tensors))


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("bias", torch.zeros(3)),
        ("weight", torch.zeros(3, WIDTH + 1)),
        ("weight", torch.zeros(3, WIDTH, dtype=torch.float64)),
        ("weight", torch.full((3, WIDTH), math.inf)),
    ],
)
def test_head_that_does_not_fit_is_refused(client, name, weight):
    before = client.head.module.weight.detach().clone()
    with pytest.raises(ProtocolError, match="the server sent 'head_weight"):
        client.handle(Frame(m.HEAD, tensors={f"head_weight.{name}": weight}))
    assert torch.equal(client.head.module.weight, before)


def test_batch_fetched_ahead_is_put_back_at_the_end_of_a_round(client):
    client.handle(Frame(m.BATCH))
    step(client, next=True)
    client.handle(Frame(m.ROUND_END))
    assert client.batches.position == 2
    again = client.handle(Frame(m.BATCH))
    assert client.batches.position == 4
    assert again.kind == m.ACTIVATION


def test_phase_begins_anew(checkpoints):
    client = edge(checkpoints["gpt2"], "head.share=personal")
    start = client.head.module.weight.detach().clone()
    first = client.handle(Frame(m.BATCH))
    step(client)
    assert not torch.equal(client.head.module.weight, start)
    client.handle(Frame(m.PHASE))
    assert torch.equal(client.head.module.weight, start)
    again = client.handle(Frame(m.BATCH))
    assert torch.equal(again.tensors["activation"], first.tensors["activation"])


def test_evaluation_goes_through_all_rows_and_counts_them(client):
    reply = client.handle(Frame(m.EVAL_BEGIN, fields={"rows": 2}))
    sizes = []
    while reply.kind == m.ACTIVATION:
        rows = len(reply.tensors["lengths"])
        sizes.append(rows)
        reply = client.handle(Frame(m.EVAL, tensors=z(rows)))
    assert sizes == [2, 1]
    assert sum(map(sum, reply.fields["counts"]["confusion"])) == 3


def test_held_out_rows_come_in_order_of_length(checkpoints):
    client = edge(checkpoints["gpt2"], held_out=5)
    lengths = []
    reply = client.handle(Frame(m.EVAL_BEGIN, fields={"rows": 2}))
    while reply.kind == m.ACTIVATION:
        lengths += reply.tensors["lengths"].tolist()
        reply = client.handle(Frame(m.EVAL, tensors=z(len(reply.tensors["lengths"]))))
    assert lengths == [2, 3, 4, 5, 6]
    assert sum(map(sum, reply.fields["counts"]["confusion"])) == 5


def test_client_without_held_out_rows_has_no_counts(checkpoints):
    client = edge(checkpoints["gpt2"], held_out=0)
    reply = client.handle(Frame(m.EVAL_BEGIN, fields={"rows": 8}))
    assert (reply.kind, reply.fields["counts"]) == (m.METRICS, None)


def test_client_without_samples_is_refused(checkpoints):
    parts = EdgeParts(
        Scenario(), Checkpoint(checkpoints["gpt2"]), None, edge(checkpoints["gpt2"]).model
    )
    with pytest.raises(FedloraError, match="client 2 has no training sample"):
        build_client(parts, 2, [], [])


def test_a_representation_that_overflows_here_is_refused_in_a_sentence(client):
    client.handle(Frame(m.BATCH))
    for parameter in client.head.module.parameters():
        parameter.data.fill_(1.0)
    with pytest.raises(ProtocolError, match=r"loss is (inf|nan): what the server sent overflows"):
        client.handle(Frame(m.STEP, "4", 9, {"step": 0}, z(value=3e38)))


def test_rows_are_asked_for_again_each_once(client):
    """One small frame could otherwise ask for more rows than the device has memory for."""
    reply = client.handle(Frame(m.BATCH, "4", 1, {"kept": 0}))
    ids = reply.tensors["ids"]
    with pytest.raises(ProtocolError, match="twice in one request"):
        client.handle(Frame(m.AGAIN, "4", 2, {"kept": 0}, {"ids": ids.repeat(2)}))
    again = client.handle(Frame(m.AGAIN, "4", 3, {"kept": 0}, {"ids": ids}))
    assert torch.equal(again.tensors["activation"], reply.tensors["activation"])
