"""``link.activation = "tokens"``: the same result to the last bit, in the bits of token ids."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from support.federation import Federation, scenario

from clients.owner.scenario import local_scenario
from fedlora.check import check_scenario
from fedlora.config import DataConfig, NodeKeys
from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import TokensCodec, create_codec

TOKENS = "link.activation=tokens"


class Embedding:
    """A token embedding with some rows that are equal."""

    def __init__(self, size: int, width: int = 6) -> None:
        weight = torch.randn(size, width, generator=torch.Generator().manual_seed(size))
        weight[size // 2] = weight[0]
        weight[-1] = -0.0
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids]


@pytest.mark.parametrize("size", [2, 3, 256, 257, 50257])
def test_tokens_take_the_bits_that_number_the_vocabulary_and_give_their_rows(size):
    vocabulary = Embedding(size)
    codec = create_codec("tokens", vocabulary=vocabulary)
    ids = torch.randint(size, (37,), generator=torch.Generator().manual_seed(1))
    parts = codec.encode(vocabulary(ids))
    bits = int(np.ceil(np.log2(size)))
    assert [part.nbytes for part in parts.values()] == [-(-37 * bits // 8)]
    rows = codec.decode(parts, (37, 6))
    assert torch.equal(rows.view(torch.int32), vocabulary(ids).view(torch.int32))


@pytest.mark.parametrize(
    "part",
    [
        torch.zeros(3, dtype=torch.uint8),
        torch.zeros(4, dtype=torch.int8),
        torch.full((4,), 255, dtype=torch.uint8),  # 31 of a vocabulary of 20
    ],
)
def test_tokens_that_are_none_are_refused(part):
    codec = create_codec("tokens", vocabulary=Embedding(20))
    with pytest.raises(ProtocolError):
        codec.decode({".token": part}, (6, 6))


def test_what_is_no_row_of_the_embedding_is_not_sent():
    codec = create_codec("tokens", vocabulary=Embedding(20))
    with pytest.raises(FedloraError, match="no row of the token embedding"):
        codec.encode(Embedding(20).weight[3:5] + 1e-6)


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", ["head.share=step"]), ("gemma", ["task.kind=causal_lm", "model.dtype=bf16"])],
)
def test_the_adapter_is_that_of_a_run_that_sends_embeddings(tiny, records, family, task, caplog):
    config = scenario(tiny[family], records, *task, "train.rounds=2")
    exact = Federation(config).run()
    with caplog.at_level(logging.WARNING):
        named = Federation(scenario(tiny[family], records, *task, "train.rounds=2", TOKENS)).run()
    assert "link.activation is tokens" in caplog.text
    assert named.recorder.losses() == exact.recorder.losses()
    theirs = exact.server.engine.adapter()
    for name, factor in named.server.engine.adapter().items():
        assert torch.equal(factor, theirs[name])
    few, all_ = (
        run.server.air.ledger.totals()["bits"]["up"]["activation"] for run in (named, exact)
    )
    weight = named.server.engine.vocabulary.weight
    bits = (len(weight) - 1).bit_length()
    assert few / all_ == pytest.approx(bits / 32 / weight.shape[1], rel=0.1)


@pytest.mark.parametrize(
    ("family", "setting", "said"),
    [
        ("gpt2", "model.client_front=1", "set model.client_front to 0"),
        ("gpt2", "train.embedding=true", "set train.embedding to false"),
        ("gpt2", "privacy.activation_sigma=40", "privacy.activation_sigma is 40"),
        ("gpt2", "link.gradient=tokens", "link.gradient is tokens"),
    ],
)
def test_where_activations_stand_for_no_tokens_it_is_refused(tiny, records, family, setting, said):
    noised = ["privacy.epsilon=50", "privacy.delta=1e-5"] if "privacy" in setting else []
    with pytest.raises(FedloraError, match=said):
        check_scenario(scenario(tiny[family], records, TOKENS, *noised, setting))


def test_an_owner_can_forbid_it(tiny, records):
    config = scenario(tiny["gpt2"], records, TOKENS, 'task.labels=["a","b","c"]')
    keys = {"data": config.data.train, "model": config.model.path, "partition-id": 0}
    assert local_scenario(config, NodeKeys.read(keys)).data != DataConfig()
    with pytest.raises(FedloraError, match='set tokens="true"'):
        local_scenario(config, NodeKeys.read({**keys, "tokens": "false"}))


def test_all_codecs_of_an_embedding_sort_its_rows_once():
    embedding, other = torch.nn.Embedding(50, 8), torch.nn.Embedding(50, 8)
    first, second = (TokensCodec(embedding) for _ in range(2))
    x = embedding(torch.arange(7)).detach()
    assert torch.equal(second.decode(first.encode(x), (7, 8)), x)
    assert second._index() is first._index() is not TokensCodec(other)._index()
    with pytest.raises(FedloraError, match="no row of the token embedding"):
        TokensCodec(other).encode(x)
