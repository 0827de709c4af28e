"""The folder that ``fedlora from-gguf`` writes is the model that was put into the GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from support.chat_folders import SMOLLM2, write_chat_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedlora.commands.from_gguf import write_model
from fedlora.errors import FedloraError

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return a query's or key's weight with rotary pairs side by side, as llama.cpp has them."""
    width = weight.shape[1]
    return weight.view(heads, 2, -1, width).transpose(1, 2).reshape(-1, width).contiguous()


def write_gguf(folder: Path, file: Path) -> None:
    """Write a Llama folder as llama.cpp's converter does."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    table = json.loads((folder / "tokenizer.json").read_text())
    ids = table["model"]["vocab"] | {t["content"]: t["id"] for t in table["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    tokens += [f"<unused{n}>" for n in range(config.vocab_size - len(tokens))]
    special = {t["content"] for t in table["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    merges = table["model"]["merges"]
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in merges])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_chat_template(SMOLLM2)
    for own_name, weight in model.state_dict().items():
        name = own_name
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        own = next((number for part, number in heads.items() if part in name), 0)
        for ours, theirs in _NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, (interleaved(weight, own) if own else weight).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_logits_tokens_and_template_are_those_of_the_model_in_the_file(tmp_path, capsys):
    folder = write_chat_model(tmp_path / "model", SMOLLM2)
    write_gguf(folder, tmp_path / "model.gguf")
    write_model(str(tmp_path / "model.gguf"), tmp_path / "out")
    assert "in fp32 to" in capsys.readouterr().out
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected, found = (
            AutoModelForCausalLM.from_pretrained(place)(input_ids=ids).logits
            for place in (folder, tmp_path / "out")
        )
    assert torch.allclose(expected, found, atol=1e-5)
    turn = [{"role": "user", "content": "dog 1?"}]
    texts = [
        AutoTokenizer.from_pretrained(place).apply_chat_template(
            turn, add_generation_prompt=True, tokenize=False
        )
        for place in (folder, tmp_path / "out")
    ]
    assert texts[0] == texts[1]
    with pytest.raises(FedloraError, match="is not empty"):
        write_model(str(tmp_path / "model.gguf"), tmp_path / "out")


def test_what_is_no_gguf_file_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(FedloraError, match=r"model\.gguf' cannot be read"):
        write_model(str(tmp_path / "model.gguf"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    with pytest.raises(FedloraError, match="is a folder"):
        write_model(str(tmp_path), tmp_path / "out")
    with pytest.raises(FedloraError, match="there is no such GGUF file"):
        write_model(str(tmp_path / "none.gguf"), tmp_path / "out")
