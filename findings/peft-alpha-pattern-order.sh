#!/bin/sh
# peft 0.21.2, alpha_pattern with two keys that fit the same module: the first counts, so that a more special key has to
# stand before a general one. save_pretrained writes adapter_config.json with its keys in the order of the alphabet, and so
# the saved adapter, loaded again, may scale by the other key: other logits, no word. (With rank_pattern the same ends in a
# size mismatch.) Who gives one layer another alpha should name every module by a key that fits it alone.
#
# Seen on 2026-11-30 (CPU, fp32), Llama of two blocks, r = 8, layers.1.self_attn.k_proj 32 before k_proj 16:
#   scaling of that layer 4.0 before, 2.0 after saving and loading; logits 0.03 apart
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import json
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

PATTERN = {"layers.1.self_attn.k_proj": 32, "k_proj": 16}


def base() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def scaling(model: nn.Module) -> float:
    return model.base_model.model.model.layers[1].self_attn.k_proj.scaling["default"]


ids = torch.arange(5, 25)[None]
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["k_proj"], alpha_pattern=dict(PATTERN))
    model = get_peft_model(base(), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    before, logits = scaling(model), model(input_ids=ids).logits
    model.save_pretrained(folder)
    kept = list(json.loads((Path(folder) / "adapter_config.json").read_text())["alpha_pattern"])
    model = PeftModel.from_pretrained(base(), folder).eval()
    after, distance = scaling(model), (model(input_ids=ids).logits - logits).abs().max().item()
print(f"given {list(PATTERN)}, kept {kept}: scaling {before} before, {after} after, logits {distance:.2f} apart")
assert before == 4.0, "the first key that fits is no longer the one that counts"
assert kept == sorted(PATTERN), "the order of keys is kept now"
assert after == 2.0 and distance > 0.01, "the reloaded adapter scales as the saved one did"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
