"""What is learnt: tasks, their records, tokenizer and partition."""

from fedlora.tasks.base import (
    IGNORED,
    Counts,
    RecordError,
    Sample,
    Task,
    TaskLoss,
    check_length,
    check_pool,
    head_trains,
    task_class,
)
from fedlora.tasks.data import Record, load_records, require_column
from fedlora.tasks.partition import Rows, holdout_split
from fedlora.tasks.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "IGNORED",
    "Counts",
    "Record",
    "RecordError",
    "Rows",
    "Sample",
    "Task",
    "TaskLoss",
    "Tokenizer",
    "check_length",
    "check_pool",
    "head_trains",
    "holdout_split",
    "load_records",
    "load_tokenizer",
    "require_column",
    "task_class",
]
