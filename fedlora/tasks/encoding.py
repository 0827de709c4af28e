"""From records to samples that the model can take, and what is told of those that give none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedlora.checks import shown
from fedlora.config import DataConfig
from fedlora.errors import FedloraError
from fedlora.split import Checkpoint
from fedlora.tasks.base import RecordError, Sample, Task
from fedlora.tasks.columns import Record
from fedlora.tasks.tokenizer import Tokenizer, load_tokenizer


def encode_records(
    task: Task, records: Sequence[Record], tokenizer: Tokenizer, data: DataConfig, rows: int
) -> list[Sample]:
    """Encode records, none of which may have a token that the model's embedding lacks.

    A tokenizer may well have more ids than the embedding rows, as published checkpoints do, as long
    as no text has such a token.

    Parameters
    ----------
    task, records, tokenizer, data
        As for ``Task.samples``.
    rows
        Of the embedding.

    Raises
    ------
    FedloraError
        What ``Task.samples`` raises; as a ``RecordError`` when a record has such a token.
    """
    samples = task.samples(records, tokenizer, data)
    if tokenizer.largest_id < rows:
        return samples
    for sample in samples:
        if lacking := lacking_token(sample.ids, tokenizer, rows):
            if sample.source < 0:
                raise FedloraError(f"a sample has {lacking}")
            raise RecordError(sample.source, f"has {lacking}")
    return samples


def lacking_token(ids: Iterable[int], tokenizer: Tokenizer, rows: int) -> str:
    """Return what is wrong with ids that an embedding lacks, and the mend; empty where none is.

    Parameters
    ----------
    ids
        Token ids of a text.
    tokenizer
        What they were made with.
    rows
        Of the embedding.
    """
    number = next((number for number in ids if number >= rows), None)
    if number is None:
        return ""
    return (
        f"the token {shown(tokenizer.backend.id_to_token(number))} with the id {number}, and the "
        f"model's embedding has {rows} rows for the tokenizer's ids up to {tokenizer.largest_id}; "
        "resize it with resize_token_embeddings and save the model, or take the token out of the "
        "tokenizer"
    )


def fitting_tokenizer(task: type[Task], checkpoint: Checkpoint) -> Tokenizer:
    """Read a checkpoint's tokenizer, whose ends of a text the embedding must have.

    Raises
    ------
    FedloraError
        When it cannot be read, or puts a token around every text that the embedding lacks.
    """
    tokenizer = load_tokenizer(checkpoint.folder)
    ends = tokenizer.closing if task.pooled else (tokenizer.eos_id or 0,)
    rows = checkpoint.size("vocab_size")
    if lacking := lacking_token((*tokenizer.opening, *ends), tokenizer, rows):
        raise FedloraError(f"every text has {lacking}")
    return tokenizer


@dataclass
class Tally:
    """How many records lose tokens, or give no sample.

    Attributes
    ----------
    records, used
        How many there are, and how many give a sample.
    cut
        How many of those that are used lose tokens to ``task.max_length``.
    longest
        Tokens of the longest that is used, uncut.
    """

    records: int = 0
    used: int = 0
    cut: int = 0
    longest: int = 0

    def add(self, records: int, samples: Sequence[Sample]) -> None:
        """Count records and the samples that were made of them."""
        self.records += records
        self.used += len({sample.source for sample in samples})
        self.cut += len({sample.source for sample in samples if sample.cut})
        self.longest = max([self.longest, *(len(s.ids) + s.cut for s in samples)])

    def told(self, max_length: int) -> list[str]:
        """Return what is told of records that are cut or left out."""
        told = []
        if self.cut:
            told.append(
                f"{self.cut} of {self.records} records are cut to task.max_length {max_length} "
                f"tokens, the longest has {self.longest}; raise it to train on all of them"
            )
        if self.used < self.records:
            told.append(
                f"{self.records - self.used} of {self.records} records have nothing to train on "
                f"within task.max_length {max_length}, such as those with a prompt as long, and "
                "are left out; raise it or shorten the prompts"
            )
        return told
