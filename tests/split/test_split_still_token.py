"""The padding token's embedding never trains, as Hugging Face's own modules have it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fedlora.registry import names, resolve
from fedlora.split import Checkpoint, Family, TokenEmbedding
from simulations.fuzz.models import SIZES

KINDS = [kind for kind in names("families") if kind in CONFIG_MAPPING]


def still(kind: str, config: dict[str, object]) -> int | None:
    family = resolve("families", kind, Family)()
    return family.still_token({**config, "model_type": kind})


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_holds_the_token_still_that_hugging_face_does(kind):
    config = CONFIG_MAPPING[kind](**SIZES | {"vocab_size": 101, "pad_token_id": 7})
    with torch.device("meta"):
        embedding = AutoModel.from_config(config).get_input_embeddings()
    assert still(kind, {"pad_token_id": 7}) == embedding.padding_idx


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_configuration_does_not_say_it_is_transformers_default(kind):
    if kind in ("gpt2", "gpt_bigcode"):
        assert still(kind, {}) is None
    else:
        assert still(kind, {}) == getattr(CONFIG_MAPPING[kind](), "pad_token_id", None)
    assert still(kind, {"pad_token_id": None}) is None


def test_its_row_gets_no_gradient_and_the_others_do(tiny_opt):
    embedding = TokenEmbedding(Checkpoint(tiny_opt), torch.float32).requires_grad_()
    assert embedding.still == 1
    embedding(torch.tensor([1, 4, 1, 9])).sum().backward()
    moved = embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert moved == [4, 9]


@pytest.fixture
def tiny_opt(tmp_path):
    from simulations.fuzz.models import make_model

    return make_model("opt", tmp_path / "opt")
