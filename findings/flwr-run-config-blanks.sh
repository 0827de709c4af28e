#!/bin/sh
# flwr 1.42.0, flwr run --run-config: a value with blanks round its equals sign, as TOML has it, is dropped without a word,
# alone or beside others, and the run starts with the value of pyproject.toml. A list or an unquoted word, in contrast, is
# refused.
#
# Seen on 2026-11-30, what comes of it:
#   rounds=7 gives {'rounds': 7}; rounds = 7 gives {}; rounds=7 name = "b" steps=9 gives {'rounds': 7, 'steps': 9}
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "flwr==1.42.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
from flwr.common.config import parse_config_args

found = {given: parse_config_args([given]) for given in ("rounds=7", "rounds = 7", 'rounds=7 name = "b" steps=9')}
for given, kept in found.items():
    print(f"{given} gives {kept}")
assert list(found.values()) == [{"rounds": 7}, {}, {"rounds": 7, "steps": 9}], "blanks are read otherwise"
PYTHON
FLWR_TELEMETRY_ENABLED=0 "$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
