"""The divided model computes what Hugging Face's undivided model computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.tiny_models import CAUSAL, CONFIGS, ENCODERS
from transformers import AutoModel, AutoModelForCausalLM

from fedlora.split import (
    Back,
    Blocks,
    Checkpoint,
    Cut,
    Front,
    find_family,
    language_head,
    pool_packed,
)

LENGTHS = [9, 5, 7]
CUTS = [(0, 0), (1, 0), (0, 2), (1, 1)]


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 101, (sum(LENGTHS),), generator=generator)
    padded = torch.full((len(LENGTHS), max(LENGTHS)), 0)
    mask = torch.zeros_like(padded)
    for row, part in enumerate(ids.split(LENGTHS)):
        padded[row, : len(part)] = part
        mask[row, : len(part)] = 1
    return ids, padded, mask


def split_states(folder, front: int, back: int, ids: torch.Tensor) -> torch.Tensor:
    """Packed hidden states after the final stage, through all three parts."""
    checkpoint = Checkpoint(folder)
    cut = Cut.of(checkpoint, front, back)
    server = Blocks(checkpoint, cut.start, cut.stop, final=False, dtype=torch.float32)
    up = Front(checkpoint, cut, torch.float32)(ids, LENGTHS)
    down = server(up, LENGTHS)
    return Back(checkpoint, cut, torch.float32, final=True)(down, LENGTHS)


@pytest.mark.parametrize(("front", "back"), CUTS)
@pytest.mark.parametrize("family", CONFIGS)
def test_hidden_states_equal_the_unsplit_models(checkpoints, family, front, back):
    ids, padded, mask = rows()
    whole = AutoModel.from_pretrained(checkpoints[family]).eval()
    with torch.no_grad():
        expected = whole(input_ids=padded, attention_mask=mask).last_hidden_state[mask.bool()]
        states = split_states(checkpoints[family], front, back, ids)
    assert torch.dist(states, expected) <= 1e-5 * expected.norm()


@pytest.mark.parametrize("family", CAUSAL)
def test_logits_equal_the_unsplit_language_models(checkpoints, family):
    ids, padded, mask = rows()
    folder = checkpoints[family]
    whole = AutoModelForCausalLM.from_pretrained(folder).eval()
    checkpoint = Checkpoint(folder)
    cap = find_family(checkpoint).logit_cap(checkpoint.config)
    with torch.no_grad():
        expected = whole(input_ids=padded, attention_mask=mask).logits[mask.bool()]
        logits = split_states(folder, 0, 0, ids) @ language_head(checkpoint, torch.float32).T
        if cap:
            logits = cap * torch.tanh(logits / cap)
    assert torch.dist(logits, expected) <= 1e-5 * expected.norm()


@pytest.mark.parametrize("how", ["last", "mean", "cls"])
def test_pooling_of_packed_rows_equals_pooling_of_padded_rows(how):
    hidden = torch.randn(sum(LENGTHS), 6)
    parts = hidden.split(LENGTHS)
    expected = {
        "last": torch.stack([p[-1] for p in parts]),
        "mean": torch.stack([p.mean(0) for p in parts]),
        "cls": torch.stack([p[0] for p in parts]),
    }[how]
    assert torch.allclose(pool_packed(hidden, LENGTHS, how), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_sharded_and_bf16_checkpoints_load(checkpoints, family, tmp_path):
    model = (AutoModel if family in ENCODERS else AutoModelForCausalLM).from_pretrained(
        checkpoints[family]
    )
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ids, _, _ = rows()
    states = split_states(tmp_path, 0, 0, ids)
    reference = split_states(checkpoints[family], 0, 0, ids)
    assert F.cosine_similarity(states.flatten(), reference.flatten(), 0) > 0.999


def test_edge_reads_only_its_own_tensors(checkpoints):
    checkpoint = Checkpoint(checkpoints["llama"])
    read = []
    load = checkpoint.load
    checkpoint.load = lambda name, dtype: read.append(name) or load(name, dtype)  # type: ignore[method-assign]
    cut = Cut.of(checkpoint, 0, 0)
    Front(checkpoint, cut, torch.float32)
    Back(checkpoint, cut, torch.float32, final=True)
    language_head(checkpoint, torch.float32)
    assert read == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    read.clear()
    Blocks(checkpoint, 0, 4, final=False, dtype=torch.float32)
    assert read
    assert all(name.startswith("model.layers.") for name in read)


def test_two_trainings_of_one_architecture_have_different_digests(checkpoints, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] += 1.0
    model.save_pretrained(tmp_path)
    first, second = Checkpoint(checkpoints["llama"]), Checkpoint(tmp_path)
    assert first.config_digest == second.config_digest
    assert first.weights_digest != second.weights_digest
