#!/bin/sh
# transformers 5.23.0: rows that stand one after the other in one sequence, each with positions that begin at 0, are kept
# apart by attention only where nothing is cached. The same call with use_cache=True, which is what a config says unless
# told otherwise, lets every row see those before it, in training as well; so does a mask of ones that a collator adds.
# No word of it in either case, and the first row is right in all of them. fedlora's blocks take packed rows and
# therefore say use_cache=False and give no mask.
#
# Seen on 2026-11-30 (CPU, fp32), logits of two packed rows against each row alone, relative:
#   Llama: first row 0.000, second row 0.000 without a cache, 0.259 with it, 0.259 with a mask of ones
#   GPT-2: first row 0.000, second row 0.000 without a cache, 1.179 with it, 1.179 with a mask of ones
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def apart(model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """Return how far the logits of both rows are from those of each row alone, for each way to call."""
    torch.manual_seed(0)
    rows = [torch.randint(5, 60, (1, length)) for length in (7, 5)]
    packed = torch.cat(rows, dim=1)
    call = {"input_ids": packed, "position_ids": torch.cat([torch.arange(7), torch.arange(5)])[None]}
    ways = {
        "without a cache": {"use_cache": False},
        "with it": {"use_cache": True},
        "with a mask of ones": {"use_cache": False, "attention_mask": torch.ones_like(packed)},
    }
    with torch.no_grad():
        alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], dim=1)
        found = {}
        for way, options in ways.items():
            distance = (model(**call, **options).logits - alone).norm(dim=-1) / alone.norm(dim=-1)
            found[way] = distance[0, :7].max().item(), distance[0, 7:].max().item()
    return found


torch.manual_seed(0)
llama = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )
)
gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))
for name, model in (("Llama", llama.eval()), ("GPT-2", gpt2.eval())):
    found = apart(model)
    print(f"{name}:", ", ".join(f"second row {second:.3f} {way}" for way, (_, second) in found.items()))
    assert max(first for first, _ in found.values()) < 1e-5, "the first row has changed"
    assert found["without a cache"][1] < 1e-5, "rows are no longer apart without a cache"
    assert found["with it"][1] > 0.01, "rows are apart with a cache now"
    assert found["with a mask of ones"][1] > 0.01, "rows are apart with a mask of ones now"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
