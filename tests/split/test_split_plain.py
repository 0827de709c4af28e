"""A Llama in plain torch gives Hugging Face's and PEFT's bits, or is not used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, LlamaConfig

from fedlora.lora.export import Adapter
from fedlora.split import Checkpoint, PlainLlama, conformity, load_whole, plain_llama

QUICKSTART = Path(__file__).parents[2] / "simulations" / "quickstart" / "decoder"
SMALL = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "few keys": {"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 5e5}},
    "wide heads": {"head_dim": 16, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder: Path, **settings: Any) -> Checkpoint:
    torch.manual_seed(0)
    model = AutoModel.from_config(LlamaConfig(**{**SMALL, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return Checkpoint(folder)


def adapter_for(checkpoint: Checkpoint, alpha: float) -> Adapter:
    generator = torch.Generator().manual_seed(1)
    factors = {}
    for name, entry in checkpoint.entries.items():
        if name.endswith("_proj.weight"):
            d_out, d_in = entry.shape
            A, B = (torch.randn(shape, generator=generator) for shape in ((6, d_in), (d_out, 6)))
            factors[name.removesuffix(".weight")] = (A, 0.05 * B)
    return Adapter(factors, alpha, str(checkpoint.folder), "FEATURE_EXTRACTION")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_states_are_those_of_hugging_face_and_peft_to_the_last_bit(tmp_path, shape, tokens):
    checkpoint = write(tmp_path / "model", **SHAPES[shape])
    adapter = adapter_for(checkpoint, alpha=7.0)
    ranks = [n % 7 for n in range(len(adapter.factors))]  # 0 and r_max among them
    adapter.save(tmp_path / "adapter", ranks)
    whole = load_whole(checkpoint.folder, pooled=True).eval()
    ids = torch.arange(tokens) * 7 % 53
    with torch.no_grad():
        bare = whole(input_ids=ids[None]).last_hidden_state[0]
        adapted = PeftModel.from_pretrained(whole, str(tmp_path / "adapter")).eval()
        expected = adapted(input_ids=ids[None]).last_hidden_state[0]
    for low_rank, states in (({}, bare), (adapter.low_rank(ranks), expected)):
        plain = plain_llama(checkpoint, low_rank)
        assert plain is not None
        assert torch.equal(plain(ids), states)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"residual_multiplier": 2.0},  # a key of which nothing is known
        {"dtype": "bfloat16"},
    ],
)
def test_another_configuration_is_hugging_faces(tmp_path, settings):
    assert plain_llama(write(tmp_path / "model", **settings)) is None


def other_factor(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.1.mlp.up_proj.weight"] = torch.zeros(41, 32)


@pytest.mark.parametrize(
    "change",
    [lambda t: t.pop("norm.weight"), lambda t: t.pop("layers.1.mlp.up_proj.weight"), other_factor],
)
def test_a_damaged_checkpoint_is_left_to_whoever_says_what_is_wrong(tmp_path, change):
    folder = write(tmp_path / "model").folder
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert plain_llama(Checkpoint(folder)) is None


def test_an_adapter_that_does_not_fit_is_left_to_whoever_says_so(tmp_path):
    checkpoint = write(tmp_path / "model")
    A, B = torch.zeros(2, 32), torch.zeros(32, 2)
    for name, own in (
        ("layers.2.self_attn.q_proj", (A, B, 1.0)),
        ("layers.0.mlp.up_proj", (A, B, 1.0)),
        ("layers.0.self_attn.q_proj", (A[:1], B, 1.0)),
    ):
        assert PlainLlama.of(checkpoint, {name: own}) is None
    assert PlainLlama.of(checkpoint, {"layers.0.self_attn.q_proj": (A, B, 1.0)}) is not None


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("_turns", lambda self, tokens: (torch.ones(1, 1, tokens, 8),) * 2),
        ("_norm", lambda self, name, x: x),
    ],
)
def test_a_checkpoint_whose_first_block_differs_is_hugging_faces(
    tmp_path, monkeypatch, part: str, other: Callable[..., Any]
):
    checkpoint = write(tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(PlainLlama, part, other)
        assert plain_llama(checkpoint) is None
    # which is remembered, as what is compared is the code and the checkpoint
    monkeypatch.setattr(conformity, "compare_block", None)
    assert plain_llama(checkpoint) is None


def test_a_text_is_classified_without_transformers_where_it_was_compared():
    assert plain_llama(Checkpoint(QUICKSTART)) is not None
    code = (
        "import sys, torch, fedlora.commands.infer; from fedlora.split import *; "
        "from pathlib import Path; "
        f"model = plain_llama(Checkpoint(Path({str(QUICKSTART)!r})), {{}})"
        "; print(tuple(model(torch.arange(5)).shape)); "
        "print([m for m in ('transformers', 'peft', 'accelerate', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [ast.literal_eval(line) for line in done.stdout.splitlines()] == [(5, 128), []]


def test_a_damaged_result_of_a_comparison_is_made_anew(tmp_path):
    checkpoint = write(tmp_path / "model")
    assert plain_llama(checkpoint) is not None
    (kept,) = (tmp_path / "cache").rglob("*.json")
    good = kept.read_text()
    for text in ("", "[]", json.dumps({"blocks": "far"}), json.dumps({"blocks": None})):
        kept.write_text(text)
        assert plain_llama(checkpoint) is not None
        assert kept.read_text() == good
    kept.write_text(json.dumps({"blocks": float("nan")}))
    assert plain_llama(checkpoint) is None
