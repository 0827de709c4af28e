#!/bin/sh
# peft 0.21.2, LoRA on the output matrix of a model that ties it to its token embedding, with ensure_weight_tying=True: the
# adapter is one, the matrix is one, and merging adds the update to it once for either name: the merged model is W + 2 B A
# alpha / r. safe_merge makes no difference, and before merging the model is right, so that an evaluation beforehand shows
# nothing.
#
# Seen on 2026-11-30 (CPU, fp32), Llama with tie_word_embeddings, target_modules lm_head, as a multiple of the update:
#   added 1.000 times without ensure_weight_tying, 2.000 times with it
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


def merged(tying: bool) -> float:
    """Return what merging adds to the tied matrix, as a multiple of the adapter's own update."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=True,
        )
    )
    before = model.lm_head.weight.detach().clone()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["lm_head"], ensure_weight_tying=tying)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    update = adapted.base_model.model.lm_head.get_delta_weight("default").detach()
    added = adapted.merge_and_unload(safe_merge=True).lm_head.weight.detach() - before
    times = ((added * update).sum() / update.square().sum()).item()
    assert (added - times * update).norm() < 1e-4 * update.norm(), "something else is added as well"
    return times


without, with_tying = merged(False), merged(True)
print(f"the update is added {without:.3f} times, with ensure_weight_tying {with_tying:.3f} times")
assert abs(without - 1) < 1e-4, "it is no longer added once without ensure_weight_tying"
assert abs(with_tying - 2) < 1e-4, "it is no longer added twice with ensure_weight_tying"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
