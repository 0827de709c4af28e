"""Every architecture of transformers is computed as transformers does, or it is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from fedlora.errors import FedloraError
from fedlora.registry import names, resolve
from fedlora.split import Back, Blocks, Checkpoint, Cut, Front, LanguageHead, find_family
from fedlora.split.conformity import check_conformity
from fedlora.split.edge import run_packed
from fedlora.split.family import Family

ARCHITECTURES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES})
ACCEPTED = names("families")
LENGTHS = [9, 5, 7]
CUTS = [(0, 0), (1, 0), (0, 2), (1, 1)]
SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "n_embd": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 66,
    "n_positions": 66,
    "sliding_window": 4,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# What is 1 or off in a fresh configuration, and so would hide that it is left out.
UNUSUAL: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.3, "use_qk_norm": True},
    "cohere2": {"logit_scale": 0.3},
    "gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
    },
    "opt": {"word_embed_proj_dim": 16},
    "phi3": {"partial_rotary_factor": 0.5},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "stablelm": {"use_parallel_residual": True, "use_qkv_bias": True},
    "vaultgemma": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
}


def tiny(kind: str, folder: Path, **more: Any) -> bool:
    """Write a random checkpoint, biases and norms included; tell whether it is a language model."""
    cls = CONFIG_MAPPING[kind]
    known = {*cls().to_dict(), *getattr(cls, "attribute_map", ())}
    config = cls(
        **{key: value for key, value in SIZES.items() if key in known},
        **UNUSUAL.get(kind, {}),
        **more,
    )
    causal = resolve("families", kind, Family).causal
    torch.manual_seed(7)
    model = (AutoModelForCausalLM if causal else AutoModel).from_config(config)
    with torch.no_grad():  # initial norms and biases are constant, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return causal


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 101, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    padded = torch.ones(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, part in enumerate(ids.split(LENGTHS)):
        padded[row, : len(part)], mask[row, : len(part)] = part, 1
    return ids, padded, mask


def split_states(checkpoint: Checkpoint, front: int, back: int, ids: torch.Tensor) -> torch.Tensor:
    cut = Cut.of(checkpoint, front, back)
    server = Blocks(checkpoint, cut.start, cut.stop, final=False, dtype=torch.float32)
    up = Front(checkpoint, cut, torch.float32)(ids, LENGTHS)
    down = run_packed(server, up, LENGTHS)
    return Back(checkpoint, cut, torch.float32, final=True)(down, LENGTHS)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool(torch.dist(ours, theirs) <= 1e-5 * theirs.norm())


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind in ACCEPTED])
@torch.no_grad()
def test_an_accepted_architecture_computes_what_transformers_does(kind, tmp_path):
    causal = tiny(kind, tmp_path)
    checkpoint = Checkpoint(tmp_path)
    check_conformity(checkpoint, language=causal)
    ids, padded, mask = rows()
    real = mask.bool()
    whole = AutoModel.from_pretrained(tmp_path).eval()
    expected = whole(input_ids=padded, attention_mask=mask).last_hidden_state[real]
    for cut in CUTS:
        assert close(split_states(checkpoint, *cut, ids), expected), cut
    if not causal:
        return
    whole = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    labels = torch.where(real, padded, -100)
    output = whole(input_ids=padded, attention_mask=mask, labels=labels)
    logits = LanguageHead.of(checkpoint, torch.float32)(split_states(checkpoint, 0, 0, ids))
    assert close(logits, output.logits[real])
    losses = [
        F.cross_entropy(row[:-1], targets[1:], reduction="none")
        for row, targets in zip(logits.split(LENGTHS), ids.split(LENGTHS), strict=True)
    ]
    assert float(torch.cat(losses).mean()) == pytest.approx(float(output.loss), rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in ACCEPTED])
def test_any_other_architecture_is_refused_by_name(kind, tmp_path):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(FedloraError, match=f"model_type '{kind}' .* is of no supported family"):
        find_family(Checkpoint(tmp_path))


def test_the_table_in_the_docs_has_every_accepted_architecture_with_its_family():
    page = (Path(__file__).parents[2] / "docs/models.md").read_text()
    told = {
        kind: family
        for kinds, family in re.findall(r"^\| (`[^|]*`[^|]*) \| `(\w+)` \|", page, re.MULTILINE)
        for kind in re.findall(r"`([^`]+)`", kinds)
    }
    assert told == {kind: resolve("families", kind, Family).__name__ for kind in ACCEPTED}
