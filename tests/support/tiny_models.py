"""Tiny checkpoints with random weights, one for each family."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    RobertaModel,
)

_SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 8}
_OPT = {
    "vocab_size": 101,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}

CONFIGS = {
    "gpt2": GPT2Config(
        vocab_size=101,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_positions=64,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "opt": OPTConfig(**_OPT, word_embed_proj_dim=32),
    "opt-350m-layout": OPTConfig(**_OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    "llama": LlamaConfig(**_GROUPED),
    "llama-tied": LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "mistral": MistralConfig(**_GROUPED, sliding_window=4),
    "qwen2": Qwen2Config(
        **_GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=2
    ),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=8),
    "gemma": GemmaConfig(**_GEMMA),
    "gemma2": Gemma2Config(**_GEMMA, sliding_window=4, query_pre_attn_scalar=8),
    "gemma3_text": Gemma3TextConfig(**_GEMMA, sliding_window=4, query_pre_attn_scalar=8),
    "bert": BertConfig(**_SMALL),
    "roberta": RobertaConfig(**{**_SMALL, "pad_token_id": 1, "max_position_embeddings": 66}),
}
ENCODERS = {"bert": BertModel, "roberta": RobertaModel}
CAUSAL = [name for name in CONFIGS if name not in ENCODERS]


def random_model(name: str) -> torch.nn.Module:
    torch.manual_seed(7)
    if name in ENCODERS:
        model = ENCODERS[name](CONFIGS[name], add_pooling_layer=False)
    else:
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    with torch.no_grad():  # initial norms and biases are constant, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()
