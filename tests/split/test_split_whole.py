"""The undivided model has a checkpoint's tensors, and no random ones in their place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import CAUSAL, CONFIGS
from transformers import AutoModel, AutoModelForCausalLM

from fedlora.errors import FedloraError
from fedlora.split import load_whole


def rewrite(source: Path, target: Path, change) -> Path:
    """Copy a checkpoint with other tensors."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("family", CONFIGS)
def test_it_is_what_transformers_loads_where_nothing_is_missing(checkpoints, family, pooled):
    if not pooled and family not in CAUSAL:
        pytest.skip("has no language head")
    cls = AutoModel if pooled else AutoModelForCausalLM
    ours = load_whole(checkpoints[family], pooled=pooled).state_dict()
    theirs = cls.from_pretrained(checkpoints[family]).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "pooler" not in name)


def test_a_tied_matrix_under_the_heads_name_alone_is_the_token_embedding(checkpoints, tmp_path):
    source = checkpoints["gpt2"]
    whole = AutoModelForCausalLM.from_pretrained(source)
    assert whole.config.tie_word_embeddings
    matrix = whole.get_input_embeddings().weight.detach().clone()

    def move(weights):
        (name,) = (name for name in weights if name.endswith("wte.weight"))
        assert torch.equal(weights.pop(name), matrix)
        weights["lm_head.weight"] = matrix

    folder = rewrite(source, tmp_path / "model", move)
    for pooled in (True, False):
        assert torch.equal(load_whole(folder, pooled=pooled).get_input_embeddings().weight, matrix)


def test_a_checkpoint_that_lacks_a_matrix_is_refused(checkpoints, tmp_path):
    def drop(weights):
        weights.pop("model.layers.1.mlp.up_proj.weight")

    folder = rewrite(checkpoints["llama"], tmp_path / "model", drop)
    with pytest.raises(FedloraError, match=r"lacks .*up_proj.weight, which would be random"):
        load_whole(folder, pooled=True)
