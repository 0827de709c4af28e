#!/bin/sh
# transformers 5.23.0, Gemma with use_bidirectional_attention = true and its default attention (sdpa): what a row
# gives depends on whether another row of its batch is padded. Alone, or among rows of its own length, its tokens see
# those after them; beside a longer row, which brings a padding mask with it, they do not: the mask that is built then
# is causal whatever the key says. With attn_implementation="eager" the same model is causal in both cases.
# A federation's batches are ragged, so the two would mix: fedlora refuses the key for Gemma and Gemma 2 and takes it
# for Gemma 3, whose mask follows it.
#
# Seen on 2026-11-29 (CPU, fp32):
#   sdpa: alone against beside a longer row 0.062 apart, first token moves by 0.176 as the last one changes
#   eager: 0.000 apart, first token moves by 0.000
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import torch
from transformers import GemmaConfig, GemmaModel


def apart(attention: str) -> tuple[float, float]:
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, use_bidirectional_attention=True, attn_implementation=attention,
    )
    model = GemmaModel(config).eval()
    row = torch.arange(5, 13)[None]
    other = torch.arange(20, 30)[None]
    batch = torch.cat([torch.nn.functional.pad(row, (0, 2)), other])
    mask = torch.tensor([[1] * 8 + [0] * 2, [1] * 10])
    changed = row.clone()
    changed[0, -1] = 40
    with torch.no_grad():
        alone = model(input_ids=row, use_cache=False).last_hidden_state[0]
        beside = model(input_ids=batch, attention_mask=mask, use_cache=False).last_hidden_state[0, :8]
        moved = model(input_ids=changed, use_cache=False).last_hidden_state[0]
    return float((alone - beside).norm() / alone.norm()), float((alone[0] - moved[0]).norm())


found = {attention: apart(attention) for attention in ("sdpa", "eager")}
for attention, (distance, first) in found.items():
    print(f"{attention}: alone against beside a longer row {distance:.3f} apart, first token moves by {first:.3f} as the last one changes")
assert found["sdpa"][0] > 0.01 and found["sdpa"][1] > 0.01, "sdpa no longer depends on the padding"
assert found["eager"] == (0.0, 0.0), "eager is no longer causal"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
