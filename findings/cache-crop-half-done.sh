#!/bin/sh
# transformers 5.23.0, Cache.crop of a model with full and sliding attention in turn (Gemma 3), past the window, as
# speculative decoding does when drafts are refused: it raises and asks for activate_past_recording beforehand, but the
# layers before the first sliding one are cropped already. Who catches the error and goes on has layers of different
# lengths. crop takes the number of tokens to remove, as a negative number.
#
# Seen on 2026-11-30 (CPU, fp32), window 8, 20 tokens, crop(-2), full attention first:
#   lengths [20, 20, 20, 20] before, [18, 20, 20, 20] after the RuntimeError
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import torch
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig

torch.manual_seed(0)
kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
model = Gemma3ForCausalLM(
    Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, layer_types=kinds,
    )
).eval()
cache = DynamicCache(config=model.config)
with torch.no_grad():
    model(input_ids=torch.randint(5, 60, (1, 20)), past_key_values=cache)


def lengths() -> list[int]:
    return [layer.get_seq_length() for layer in cache.layers]


before = lengths()
try:
    cache.crop(-2)
    raised = ""
except RuntimeError as error:
    raised = str(error)
print(f"{before} before, {lengths()} after: {raised}")
assert raised, "it is rolled back now, or another error is raised"
assert before == [20, 20, 20, 20] and lengths() == [18, 20, 20, 20], "no layer is cropped before it raises"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
