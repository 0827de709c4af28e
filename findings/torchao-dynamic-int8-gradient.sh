#!/bin/sh
# torchao 0.18.0, int8 weights with activations quantised as they come (Int8DynamicActivationInt8WeightConfig), under
# LoRA of peft 0.21.2: no gradient runs back through such a layer, and nothing says so. Its output alone has no graph, but
# LoRA's branch beside it has one, so backward goes through: the last layer's factors get what they should, all before it
# only what comes back through the later LoRA branches. Weights alone in int8 (Int8WeightOnlyConfig) train as fp32 does.
# fedlora's model.weights = "int8" is the latter.
#
# Seen on 2026-11-30 (CPU), lora_A against that of the same two layers in fp32:
#   Int8WeightOnlyConfig, first layer: cosine 1.000, 1.001 of the norm; second layer 1.000, 1.000
#   Int8DynamicActivationInt8WeightConfig, first layer: cosine 0.157, 0.373 of the norm; second layer 1.000, 1.000
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "torchao==0.18.0" "peft==0.21.2" "transformers==5.23.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def gradients(config: object | None) -> dict[str, torch.Tensor]:
    """Return the gradient of each layer's lora_A, B drawn, on a base that is held as the configuration says."""
    torch.manual_seed(0)
    model = Two()
    if config is not None:
        quantize_(model, config)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=["first", "second"]))
    draw = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            tensor.data = 0.1 * torch.randn(tensor.shape, generator=draw)
    x, goal = torch.randn(32, 64, generator=draw), torch.randn(32, 64, generator=draw)
    (model(x) * goal).sum().backward()
    return {n.split(".")[2]: p.grad.clone() for n, p in model.named_parameters() if "lora_A" in n}


exact = gradients(None)
found = {}
for config in (Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
    for layer, gradient in gradients(config).items():
        cosine = torch.cosine_similarity(gradient.flatten(), exact[layer].flatten(), dim=0).item()
        size = (gradient.norm() / exact[layer].norm()).item()
        found[type(config).__name__, layer] = cosine, size
        print(f"{type(config).__name__}, {layer} layer: cosine {cosine:.3f}, {size:.3f} of the norm")
assert min(found["Int8WeightOnlyConfig", layer][0] for layer in exact) > 0.99, "int8 weights alone no longer train"
dynamic = "Int8DynamicActivationInt8WeightConfig"
assert found[dynamic, "second"][0] > 0.99, "the last layer no longer trains"
assert found[dynamic, "first"][0] < 0.5 and found[dynamic, "first"][1] < 0.7, "a gradient comes back through it now"
with torch.no_grad():
    plain = nn.Linear(64, 64, bias=False)
quantize_(plain, Int8DynamicActivationInt8WeightConfig())
assert not plain(torch.randn(4, 64, requires_grad=True)).requires_grad, "its output has a graph now"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
