#!/bin/sh
# diffusers 0.42.1, DDIMScheduler as it is made (timestep_spacing "leading"): of T training steps it takes every (T //
# steps)-th from 0 on. Where steps is more than half of T it therefore takes the first ones in a row and starts in the
# middle of the noise: 26 of 50 steps begin at step 25, which expects a third of the noise that the sampler's own start,
# plain noise, has. Nothing is said. Models of few training steps, as in policies, meet this; the airllm strategy spaces its
# steps evenly from the last to 0.
#
# Seen on 2026-11-30, T = 50, the first step, and how much of the variance is noise there:
#   25 steps: 48, 0.38; 26 steps: 25, 0.13; 40 steps: 39, 0.28; 50 steps: 49, 0.40
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" "transformers==5.23.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
from diffusers import DDIMScheduler

first = {}
for steps in (25, 26, 40, 50):
    scheduler = DDIMScheduler(num_train_timesteps=50)
    scheduler.set_timesteps(steps)
    first[steps] = int(scheduler.timesteps[0])
    print(f"{steps} of 50: from {first[steps]}, noise {1 - scheduler.alphas_cumprod[first[steps]]:.2f} of the variance")
assert first == {25: 48, 26: 25, 40: 39, 50: 49}, "it takes other steps"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
