"""What is learnt: tasks, their records, tokenizer and partition."""

from fedlora.tasks.base import (
    IGNORED,
    Counts,
    RecordError,
    Sample,
    Task,
    TaskLoss,
    check_front,
    check_length,
    check_pool,
    head_trains,
    task_class,
)
from fedlora.tasks.classification import Classification
from fedlora.tasks.columns import (
    Record,
    check_form,
    check_labels,
    class_names,
    label_column,
    label_of,
    require_column,
)
from fedlora.tasks.data import load_records
from fedlora.tasks.encoding import (
    Tally,
    check_single,
    check_unit,
    encode_records,
    fitting_tokenizer,
    lacking_token,
    require_texts,
    tokenizer_digest,
)
from fedlora.tasks.end_tokens import end_tokens
from fedlora.tasks.errors import ErrorCounts
from fedlora.tasks.language_records import renders_chat
from fedlora.tasks.metrics import ClassificationCounts, NoisedCounts
from fedlora.tasks.partition import Rows, holdout_split, partition
from fedlora.tasks.plugin import (
    counts_of,
    front_of,
    head_of,
    loss_of,
    make_task,
    records_of,
    vectors_of,
)
from fedlora.tasks.scores import ScoreCounts
from fedlora.tasks.text_scores import TextCounts, check_text_scores
from fedlora.tasks.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "IGNORED",
    "Classification",
    "ClassificationCounts",
    "Counts",
    "ErrorCounts",
    "NoisedCounts",
    "Record",
    "RecordError",
    "Rows",
    "Sample",
    "ScoreCounts",
    "Tally",
    "Task",
    "TaskLoss",
    "TextCounts",
    "Tokenizer",
    "check_form",
    "check_front",
    "check_labels",
    "check_length",
    "check_pool",
    "check_single",
    "check_text_scores",
    "check_unit",
    "class_names",
    "counts_of",
    "encode_records",
    "end_tokens",
    "fitting_tokenizer",
    "front_of",
    "head_of",
    "head_trains",
    "holdout_split",
    "label_column",
    "label_of",
    "lacking_token",
    "load_records",
    "load_tokenizer",
    "loss_of",
    "make_task",
    "partition",
    "records_of",
    "renders_chat",
    "require_column",
    "require_texts",
    "task_class",
    "tokenizer_digest",
    "vectors_of",
]
