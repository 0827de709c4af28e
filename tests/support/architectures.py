"""A tiny random checkpoint of any architecture that fedlora accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fedlora.registry import names, resolve
from fedlora.split import Family

ACCEPTED = names("families")
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
        **UNUSUAL.get(kind, {}) | more,
    )
    causal = resolve("families", kind, Family).causal
    torch.manual_seed(7)
    model = (AutoModelForCausalLM if causal else AutoModel).from_config(config)
    with torch.no_grad():  # initial norms and biases are constant, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return causal
