#!/bin/sh
# flwr-datasets 0.6.1, PathologicalPartitioner with class_assignment_mode="deterministic": partition i gets the classes i, i
# + 1, ..., so that five partitions of two classes, enough for ten, take six of them and leave 400 of 1000 rows out. It
# warns, and advises to set first_class_deterministic_assignment=True, an argument that it does not have.
#
# Seen on 2026-11-30, ten classes, 1000 rows, two classes a partition:
#   5 partitions: 600 rows, without the classes 6 to 9; 3 partitions: 400 rows, without the classes 4 to 9
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "flwr-datasets==0.6.1" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import inspect
import warnings

from datasets import Dataset
from flwr_datasets.partitioner import PathologicalPartitioner

rows = Dataset.from_dict({"label": [number % 10 for number in range(1000)]})


def dealt(partitions: int, classes: int, mode: str) -> tuple[int, list[int], str]:
    """Return how many rows are dealt, which classes are in no partition, and what was warned of."""
    partitioner = PathologicalPartitioner(
        num_partitions=partitions, partition_by="label", num_classes_per_partition=classes,
        class_assignment_mode=mode,
    )
    partitioner.dataset = rows
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        parts = [partitioner.load_partition(number) for number in range(partitions)]
    used = {label for part in parts for label in part["label"]}
    words = " ".join(str(warning.message) for warning in told)
    return sum(map(len, parts)), sorted(set(range(10)) - used), words


given = inspect.signature(PathologicalPartitioner.__init__).parameters
for partitions in (5, 3):
    found, missing, words = dealt(partitions, 2, "deterministic")
    print(f"{partitions} partitions of 2 classes: {found} of 1000 rows, without the classes {missing}")
    assert missing == list(range(partitions + 1, 10)) and found == 100 * (partitions + 1), "classes are dealt otherwise"
    assert "first_class_deterministic_assignment" in words, "the warning has other advice"
print("the argument that the warning advises is there:", "first_class_deterministic_assignment" in given)
assert "first_class_deterministic_assignment" not in given, "the argument exists now"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
