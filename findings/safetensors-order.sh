#!/bin/sh
# safetensors 0.8.0: load(bytes) returns the tensors in another order from call to call within one process, and save with
# several keys of metadata writes these in another order, so that equal tensors have files of different digests. load_file
# keeps the file's order, and with one key of metadata or none files repeat. Who adds up what came over a wire, or hashes a
# checkpoint, sorts first.
#
# Seen on 2026-11-30, 20 calls each:
#   load of 20 tensors: 20 orders; save with six keys of metadata: 19 or 20 files, with one key: 1
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "safetensors==0.8.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import safetensors.torch
import torch

data = safetensors.torch.save({f"layer.{number}": torch.zeros(1) for number in range(20)})
orders = {tuple(safetensors.torch.load(data)) for _ in range(20)}


def files(keys: int) -> int:
    """Return how many different files come of 20 times the same."""
    words = {f"key{number}": "value" for number in range(keys)}
    return len({safetensors.torch.save({"a": torch.zeros(1)}, metadata=words) for _ in range(20)})


several, one = files(6), files(1)
print(f"load: {len(orders)} orders; save with six keys of metadata: {several} files, with one: {one}")
assert len(orders) > 1, "load keeps an order now"
assert several > 1, "files with several keys of metadata repeat now"
assert one == 1, "files with one key of metadata do not repeat"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
