"""From records to samples that the model can take, and what is told of those that give none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from fedlora.blame import is_ours
from fedlora.config import DataConfig, Scenario, TaskConfig
from fedlora.errors import FedloraError, shown
from fedlora.split import Checkpoint
from fedlora.tasks.base import RecordError, Sample, Task, task_class
from fedlora.tasks.columns import Record
from fedlora.tasks.plugin import samples_of
from fedlora.tasks.tokenizer import Tokenizer, load_tokenizer


def encode_records(
    task: Task, records: Sequence[Record], tokenizer: Tokenizer | None, data: DataConfig, rows: int
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
        What ``Task.samples`` raises; as a ``RecordError`` when a record has such a token, or values
        of which no front makes vectors that the model takes.
    """
    samples = samples_of(task, records, tokenizer, data)
    if tokenizer is not None and tokenizer.largest_id < rows and is_ours(type(task)):
        return samples
    for sample in samples:
        if tokenizer is None:
            wrong = unfit_values(sample, task.config)
        else:
            wrong = lacking_token(sample.ids, tokenizer, rows)
        if wrong:
            if sample.source < 0:
                raise FedloraError(f"a sample has {wrong}")
            raise RecordError(sample.source, f"has {wrong}")
    return samples


def unfit_values(sample: Sample, config: TaskConfig) -> str:
    """Return what is wrong with a sample whose inputs are no tokens; empty where nothing is.

    Parameters
    ----------
    sample
        The sample.
    config
        Of its task, with ``max_length``, the most places of a sequence.
    """
    values, longest = sample.values, config.max_length
    if values is None or values.dim() != 2 or values.dtype != torch.float32:
        kind = "none" if values is None else f"{values.dtype} of shape {tuple(values.shape)}"
        return (
            f"values that are no fp32 tensor of shape (places, numbers) but {kind}; mend samples() "
            f"of task.kind {config.kind}"
        )
    if not 1 <= len(values) <= longest:
        return (
            f"a sequence of {len(values)} places, and task.max_length is {longest}; shorten it, or "
            "raise that"
        )
    if not bool(values.isfinite().all()):
        return "NaN or infinity among its values; mend or remove it"
    return ""


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


def fitting_tokenizer(task: type[Task], checkpoint: Checkpoint) -> Tokenizer | None:
    """Read a checkpoint's tokenizer, whose ends of a text the embedding must have.

    None for a task whose inputs are no tokens: the checkpoint needs none then.

    Raises
    ------
    FedloraError
        When it cannot be read, or puts a token around every text that the embedding lacks.
    """
    if not task.tokens:
        return None
    tokenizer = load_tokenizer(checkpoint.folder)
    ends = tokenizer.closing if task.pooled else (tokenizer.eos_id or 0,)
    rows = checkpoint.size("vocab_size")
    if lacking := lacking_token((*tokenizer.opening, *ends), tokenizer, rows):
        raise FedloraError(f"every text has {lacking}")
    return tokenizer


def check_single(scenario: Scenario, samples: Sequence[Sample]) -> None:
    """Refuse noise for records of which each is several samples, as it is planned for one.

    Parameters
    ----------
    scenario
        The run's.
    samples
        Of some records, whose inputs are no tokens.

    Raises
    ------
    FedloraError
        When privacy is on, and two samples have one source.
    """
    most = max(Counter(sample.source for sample in samples).values(), default=0)
    if scenario.privacy.enabled and most > 1:
        raise FedloraError(
            f"a record gives {most} samples, and noise is planned for one of each; write each as a "
            "record of its own, for forecasts with task.forecast.stride = 0 and without a port "
            "axis, or set privacy.epsilon to none"
        )


def check_unit(scenario: Scenario) -> None:
    """Refuse noise for a single token where inputs are no tokens.

    A sample is normalised and its loss taken as a whole, so one place moves every row of an upload.

    Raises
    ------
    FedloraError
        When ``privacy.unit`` is ``token`` for such a task.
    """
    privacy, kind = scenario.privacy, scenario.task.kind
    if privacy.enabled and privacy.unit == "token" and not task_class(kind).tokens:
        raise FedloraError(
            f"privacy.unit is token, and samples of task.kind {kind} are no tokens: one place of a "
            "sample moves all that it uploads; set privacy.unit to sample"
        )


def tokenizer_digest(task: type[Task], checkpoint: Checkpoint) -> str:
    """Return what both halves must have in common to make the same ids; empty without tokens.

    Raises
    ------
    FedloraError
        See ``fitting_tokenizer``.
    """
    tokenizer = fitting_tokenizer(task, checkpoint)
    return "" if tokenizer is None else tokenizer.digest_for(pooled=task.pooled)


def require_texts(kind: str, what: str) -> None:
    """Refuse a task whose inputs are no texts.

    Parameters
    ----------
    kind
        The scenario's ``task.kind``.
    what
        What needs texts, as the beginning of a sentence.

    Raises
    ------
    FedloraError
        When it is such a one.
    """
    if not task_class(kind).tokens:
        raise FedloraError(
            f"{what} needs texts, and task.kind is {kind!r}, whose inputs are none; give a "
            "scenario with a task of texts"
        )


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
        self.longest = max([self.longest, *(s.length + s.cut for s in samples)])

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
