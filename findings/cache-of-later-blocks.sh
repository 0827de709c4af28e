#!/bin/sh
# transformers 5.23.0, split generation: blocks of a model that run by themselves, from the third on, keep their layer_idx.
# A DynamicCache takes their keys and values into the third place and the next ones and leaves two empty before them, and
# its get_seq_length(), which positions are made from, goes by the first: it says 0 for ever. A chunk after a prompt is then
# wrong without a word. With layer_idx counted anew from 0 all is right. fedlora keeps keys and values by layer in a store
# of its own, and gives positions itself.
#
# Seen on 2026-11-30 (CPU, fp32), four of six Llama blocks, four tokens after six, relative to the same without a cache:
#   layer_idx kept: length 0, chunk 0.019 off; counted anew: length 6, chunk 0.000000 off
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel


def split(renumbered: bool) -> tuple[LlamaModel, LlamaModel]:
    """Return a model, and its blocks from the third on in a shell of their own."""
    torch.manual_seed(0)
    size = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    }
    whole = LlamaModel(LlamaConfig(num_hidden_layers=6, **size)).eval()
    part = LlamaModel(LlamaConfig(num_hidden_layers=4, **size)).eval()
    part.layers, part.norm = whole.layers[2:], whole.norm
    if renumbered:
        for place, layer in enumerate(part.layers):
            layer.self_attn.layer_idx = place
    return whole, part


def apart(renumbered: bool) -> tuple[int, float]:
    """Return the length that the cache says after six tokens, and how far a chunk of four after them is off."""
    _, part = split(renumbered)
    states = torch.randn(1, 10, 32)
    with torch.no_grad():
        wanted = part(inputs_embeds=states, use_cache=False).last_hidden_state[:, 6:]
        cache = DynamicCache()
        part(inputs_embeds=states[:, :6], past_key_values=cache, use_cache=True)
        length = cache.get_seq_length()
        got = part(inputs_embeds=states[:, 6:], past_key_values=cache, use_cache=True).last_hidden_state
    return length, ((got - wanted).norm() / wanted.norm()).item()


kept, own = apart(False), apart(True)
print(f"layer_idx kept: length {kept[0]}, chunk {kept[1]:.3f} off; renumbered: length {own[0]}, {own[1]:.6f} off")
assert kept[0] == 0, "the length is told now though layer_idx is kept"
assert kept[1] > 0.01, "a chunk is right now though layer_idx is kept"
assert own[0] == 6 and own[1] < 1e-5, "renumbered blocks are no longer right"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
