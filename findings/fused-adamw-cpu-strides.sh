#!/bin/sh
# torch 2.13.0, torch.optim.AdamW(fused=True) on a CPU: a gradient whose strides are not those of its parameter, such as
# a transposed view that somebody assigns to .grad, is read as if it lay in the parameter's order. Each number of the
# parameter then moves by another number's gradient, and nothing says so. The loop and the foreach form of the same
# optimiser take the view as what it is. On CUDA the fused form refused such lists (pytorch issue 110758, not tried here).
# Who computes gradients by hand (LoRA's A and B as products in either order, averages that came in from elsewhere)
# meets it: fedlora hands the fused step gradients that lie in order.
#
# Seen on 2026-11-30 (CPU, fp32), the largest distance from the loop after three steps of 0.01:
#   fused, gradient as a transposed view 0.06
#   fused, the same gradient laid out in order 0.00
#   foreach, gradient as a transposed view 0.00
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import torch

torch.manual_seed(0)
start = torch.randn(6, 40)
view = torch.randn(40, 6).T
laid_out = view.contiguous()


def after(gradient: torch.Tensor, **how: bool) -> torch.Tensor:
    parameter = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.0, **how)
    for _ in range(3):
        parameter.grad = gradient
        optimiser.step()
    return parameter.detach()


loop = after(view, foreach=False)
found = {
    "fused, gradient as a transposed view": after(view, fused=True),
    "fused, the same gradient laid out in order": after(laid_out, fused=True),
    "foreach, gradient as a transposed view": after(view, foreach=True),
}
distances = [float((result - loop).abs().max()) for result in found.values()]
for name, distance in zip(found, distances, strict=True):
    print(f"{name} {distance:.2f}")
assert distances[0] > 0.01, "the fused step takes a view as what it is, or refuses it"
assert max(distances[1:]) < 1e-6, "the other two are no longer equal to the loop"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
