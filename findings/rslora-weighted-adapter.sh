#!/bin/sh
# peft 0.21.2, add_weighted_adapter over adapters with use_rslora: the merged adapter's update is sqrt(r) times too large,
# r its own rank. Concatenation and SVD put the inputs' scaling alpha / sqrt(r) into the factors and set lora_alpha = r so that
# the merged one scales by 1, but use_rslora is taken over as well, so that it scales by r / sqrt(r). Without use_rslora both
# are exact. Who averages clients' adapters this way trains on with an update that grows with the ranks; the direction is
# right, which is why a loss may only look unlucky.
#
# Seen on 2026-11-30 (CPU, fp32), two adapters of rank 8 at weights 0.5 and 0.5, rank 16 merged:
#   cat: the weighted sum times 1.000 with alpha / r, times 4.000 with alpha / sqrt(r)
#   svd (svd_rank = 16): the same
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


def merged(kind: str, use_rslora: bool) -> tuple[float, float]:
    """Return the merged update as a multiple of the weighted sum, and what of it points elsewhere, relative."""
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["0"], use_rslora=use_rslora)
    model = get_peft_model(nn.Sequential(nn.Linear(32, 32)), config, "one")
    model.add_adapter("two", config)
    layer = model.base_model.model[0]
    for name in ("one", "two"):
        nn.init.normal_(layer.lora_B[name].weight)
    wanted = 0.5 * layer.get_delta_weight("one") + 0.5 * layer.get_delta_weight("two")
    rank = {"svd_rank": 16} if kind == "svd" else {}
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "sum", combination_type=kind, **rank)
    got = layer.get_delta_weight("sum")
    times = ((got * wanted).sum() / wanted.square().sum()).item()
    return times, ((got - times * wanted).norm() / got.norm()).item()


for kind in ("cat", "svd"):
    found = {use_rslora: merged(kind, use_rslora) for use_rslora in (False, True)}
    print(f"{kind}: times {found[False][0]:.3f} with alpha / r, times {found[True][0]:.3f} with alpha / sqrt(r)")
    assert max(elsewhere for _, elsewhere in found.values()) < 1e-4, "the direction has changed"
    assert abs(found[False][0] - 1) < 1e-4, "it is no longer exact with alpha / r"
    assert abs(found[True][0] - 4) < 1e-3, "it is no longer sqrt(r) times too large"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
