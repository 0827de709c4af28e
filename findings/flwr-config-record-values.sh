#!/bin/sh
# flwr 1.42.0, ConfigRecord: a list of whole numbers may hold truth values behind its first item, and they arrive as 1 and
# 0, while the same the other way round is refused. An empty list, text or bytes is valid and arrives, but count_bytes() of
# a record that holds one raises, so that who books what crosses has to count by himself. fedlora counts its own frames.
#
# Seen on 2026-11-30:
#   [2, True] arrives as [2, 1]; [True, 2]: TypeError
#   count_bytes() with []: IndexError; with '' and b'': ValueError; all three arrive as they are
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "flwr==1.42.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
from flwr.app import ConfigRecord
from flwr.common.serde import config_record_from_proto, config_record_to_proto


def arrives(value: object) -> object:
    return config_record_from_proto(config_record_to_proto(ConfigRecord({"key": value})))["key"]


def error_of(call: object, *arguments: object) -> str:
    try:
        call(*arguments)
    except (IndexError, TypeError, ValueError) as error:
        return type(error).__name__
    return "none"


mixed = arrives([2, True])
print(f"[2, True] arrives as {mixed}; [True, 2]: {error_of(arrives, [True, 2])}")
assert mixed == [2, 1] and type(mixed[1]) is int, "truth values behind a number arrive otherwise"
assert error_of(arrives, [True, 2]) == "TypeError", "a number behind a truth value is taken"
counted = {repr(value): error_of(ConfigRecord({"key": value}).count_bytes) for value in ([], "", b"")}
print("count_bytes():", counted)
assert all(arrives(value) == value for value in ([], "", b"")), "empty values no longer arrive"
assert list(counted.values()) == ["IndexError", "ValueError", "ValueError"], "empty values are counted otherwise"
PYTHON
FLWR_TELEMETRY_ENABLED=0 "$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
