#!/bin/sh
# transformers 5.23.0: an attention function of one's own, registered with AttentionInterface alone, is called with no mask
# at all: padding is attended to, and a sliding window is not kept, without a word, although the function is transformers'
# own for sdpa. The mask is made by what is registered under the same name with AttentionMaskInterface, a registry of its
# own. fedlora registers none on purpose, as its rows are packed.
#
# Seen on 2026-11-30 (CPU, fp32), two rows of which one has four places of padding on the left, logits of real tokens
# against sdpa:
#   Llama: 0.254 apart, with sdpa_mask registered as well 0.000000
#   GPT-2: 0.068 apart, with sdpa_mask registered as well 0.000000
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import torch
from transformers import AttentionInterface, AttentionMaskInterface, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

AttentionInterface.register("mine", sdpa_attention_forward)
AttentionInterface.register("mine_with_mask", sdpa_attention_forward)
AttentionMaskInterface.register("mine_with_mask", sdpa_mask)


def apart(make: type, config: type, **size: int) -> dict[str, float]:
    """Return how far real tokens' logits are from those under sdpa, in a batch padded on the left."""
    torch.manual_seed(0)
    model = make(config(vocab_size=64, **size)).eval()
    ids = torch.randint(5, 60, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = {}
    with torch.no_grad():
        for name in ("sdpa", "mine", "mine_with_mask"):
            model.set_attn_implementation(name)
            found[name] = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    wanted = found.pop("sdpa")
    return {name: ((got - wanted).norm() / wanted.norm()).item() for name, got in found.items()}


llama = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
for name, found in (
    ("Llama", apart(LlamaForCausalLM, LlamaConfig, **llama)),
    ("GPT-2", apart(GPT2LMHeadModel, GPT2Config, **gpt2)),
):
    print(f"{name}: {found['mine']:.3f} apart, {found['mine_with_mask']:.6f} with a mask registered, too")
    assert found["mine"] > 0.01, "a mask reaches an attention that is registered alone"
    assert found["mine_with_mask"] < 1e-5, "both registered are no longer the same as sdpa"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
