#!/bin/sh
# safetensors 0.8.0 with torch 2.13.0: a lazily conjugated complex tensor, as `.conj()` and `.mH` give it, is written as if
# it were not conjugated. torch keeps such a view's memory as it was and a flag beside it; the bytes are the memory's, the
# flag is not looked at, and it counts as contiguous. So a stored Hermitian channel or beamforming vector comes back with
# every imaginary part negated. numpy has no such flag, and `resolve_conj()` before saving mends it.
#
# Seen on 2026-11-30:
#   saved 1-2j, came back 1+2j; after resolve_conj() 1-2j
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "safetensors==0.8.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import torch
from safetensors.torch import load, save

h = torch.tensor([1 + 2j, 3 - 1j])
lazy = h.conj()
assert lazy.is_conj() and lazy.is_contiguous()
back = load(save({"h": lazy}))["h"]
resolved = load(save({"h": lazy.resolve_conj()}))["h"]
print(f"saved {lazy[0]:.0f}, came back {back[0]:.0f}; after resolve_conj() {resolved[0]:.0f}")
assert torch.equal(back, h), "the conjugation is written now"
assert torch.equal(resolved, lazy), "a resolved conjugate no longer comes back"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
