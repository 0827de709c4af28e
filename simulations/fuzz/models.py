"""Tiny random checkpoints of every registered architecture, with a tokenizer of 101 words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fedlora.registry import names, resolve
from fedlora.split import Family

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
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
UNUSUAL: dict[str, dict[str, Any]] = {"opt": {"word_embed_proj_dim": 16, "pad_token_id": 1}}
WORDS = range(4, 101)
OPENING, SEPARATOR = "<s>", "w5"
_CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ {'user': ' w7 ', 'system': ' w8 '}.get(m.role, "
    "' w9 ') + m.content }}{% if m.role == 'assistant' %}{{ ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)


def kinds() -> list[str]:
    """Return the architectures that fedlora splits."""
    return names("families")


def is_causal(kind: str) -> bool:
    """Tell whether an architecture is a decoder; ``quickstart`` is ours."""
    causal: bool = kind == "quickstart" or resolve("families", kind, Family).causal
    return causal


def has_positions(kind: str) -> bool:
    """Tell whether an architecture learns vectors of positions, which ``lora.also`` may name."""
    return kind in ("gpt2", "gpt_bigcode", "opt", "bert", "roberta", "camembert", "xlm-roberta")


def make_model(kind: str, folder: Path) -> Path:
    """Write a checkpoint and its tokenizer, unless they are there; return the folder.

    Parameters
    ----------
    kind
        ``model_type`` of a registered family.
    folder
        Where it goes.
    """
    if (folder / "tokenizer_config.json").exists():
        return folder
    import torch
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    known = {*cls().to_dict(), *getattr(cls, "attribute_map", ())}
    sizes = {key: value for key, value in SIZES.items() if key in known}
    config = cls(**(sizes | UNUSUAL.get(kind, {})))
    causal = is_causal(kind)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = (AutoModelForCausalLM if causal else AutoModel).from_config(config)
        with torch.no_grad():  # initial norms and biases are constant, which would hide mistakes
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    _write_tokenizer(folder, opens=kind != "gpt2", closes=not causal)
    return folder


def _write_tokenizer(folder: Path, *, opens: bool, closes: bool) -> None:
    special = ["<pad>", OPENING, "</s>", "<unk>"]
    words = [*special, *(f"w{number}" for number in WORDS)]
    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    template = f"{OPENING + ' ' if opens else ''}$A{' </s>' if closes else ''}"
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(OPENING, 1), ("</s>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": OPENING if opens else "</s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": _CHAT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
