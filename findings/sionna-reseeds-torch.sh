#!/bin/sh
# sionna-no-rt 2.2.0: importing sionna.phy draws a seed of the machine's own and gives it to torch's global generator, so a
# script that seeds torch first and imports a channel model afterwards, as a lazy import does, no longer repeats: weights
# and batches differ from run to run. `import sionna` alone leaves it. Nor does torch.manual_seed make Sionna's channels
# repeat: they have generators of their own, set by sionna.phy.config.seed, and setting that sets torch's global one too.
# fedlora imports and seeds Sionna within a fork of torch's generators, and a test holds that a run's numbers stay.
#
# Seen on 2026-11-30: torch.manual_seed(0), then the import, then torch.rand(1), in two processes each
#   nothing imported 0.496257 0.496257, sionna 0.496257 0.496257, sionna.phy two other numbers that differ
#   after sionna.phy.config.seed = 5, whatever torch was seeded with: the same number
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "sionna-no-rt==2.2.0" "torch==2.13.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import subprocess
import sys

CODE = "import torch; torch.manual_seed({seed}); {what}; print(torch.rand(1).item())"


def drawn(what: str, seed: int = 0) -> float:
    """Return the first random number of a process that seeded torch and then did something."""
    code = CODE.format(seed=seed, what=what)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


found = {what: (drawn(what), drawn(what)) for what in ("pass", "import sionna", "import sionna.phy")}
for what, (one, two) in found.items():
    print(f"{what}: {one:.6f} {two:.6f}")
assert found["pass"] == found["import sionna"], "sionna alone touches torch's generator now"
assert len({found["pass"][0], *found["import sionna.phy"]}) == 3, "sionna.phy leaves torch's generator alone now"
seeded = "import sionna.phy; torch.manual_seed({}); sionna.phy.config.seed = 5"
assert drawn(seeded.format(1)) == drawn(seeded.format(2)), "its seed is no longer torch's, too"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
