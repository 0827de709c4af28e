#!/bin/sh
# datasets 4.8.5, load_dataset("json") of conversations: while all messages have the same keys a column is a list of
# structs. One message with one more key, such as the name of a tool, makes it a list of Json, for all rows. Read as a
# dataset it looks the same; but the Parquet file that to_parquet writes holds a text for each message, which other readers
# (pyarrow, pandas) hand on as text.
#
# Seen on 2026-11-30 (pyarrow 26.0.1), the type of the first message of a Parquet file's first row:
#   all messages alike: dict; one message with one more key, two rows later: str
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "datasets==4.8.5" "pyarrow==26.0.1" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import json
from pathlib import Path

import pyarrow.parquet as parquet
from datasets import load_dataset

alike = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}] * 2
tool = [{"messages": [{"role": "user", "content": "hi"}, {"role": "tool", "content": "3", "name": "sum"}]}]
found = {}
for name, rows in (("alike", alike), ("one tool call", alike + tool)):
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = load_dataset("json", data_files="rows.jsonl", split="train", cache_dir=f"cache {name}")
    read.to_parquet("rows.parquet")
    first = parquet.read_table("rows.parquet").to_pylist()[0]["messages"][0]
    found[name] = type(read[0]["messages"][0]).__name__, type(first).__name__
    print(f"{name}: {found[name][0]} in the dataset, {found[name][1]} in the Parquet file")
assert found == {"alike": ("dict", "dict"), "one tool call": ("dict", "str")}, "messages are kept otherwise"
PYTHON
HF_HUB_OFFLINE=1 "$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
