"""What a task is to the client: samples, a head, and the gradient at the cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import nn

from fedlora.config import DataConfig, Scenario, TaskConfig
from fedlora.errors import FedloraError, shown
from fedlora.registry import resolve
from fedlora.split import Checkpoint, TokenEmbedding, find_family
from fedlora.tasks.columns import Record
from fedlora.tasks.data import load_records
from fedlora.tasks.metrics import Metric
from fedlora.tasks.tokenizer import Tokenizer

IGNORED = -1
"""Target that adds nothing to loss and gradient."""


@dataclass(frozen=True)
class Sample:
    """One encoded sample.

    Attributes
    ----------
    ids
        Token ids; empty where the task's inputs are no tokens.
    target
        Class index, or for language modelling the next token at each position; ``IGNORED`` for
        none. Of other tasks what their ``loss`` and ``measure`` take, such as a tensor.
    source
        Place of the record that it was made from among those given to ``Task.samples``; -1 where
        it was made from none. Owners' budgets go by it.
    cut
        Tokens of the record that it lacks, as ``task.max_length`` allows no more.
    values
        Of a task whose inputs are no tokens: what the client's front makes a vector each of, one
        row a place of the sequence, fp32, shape (places, numbers).
    """

    ids: tuple[int, ...]
    target: Any
    source: int = -1
    cut: int = 0
    values: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Vectors that the front makes of it: tokens of a text, places of a sequence."""
        return len(self.ids) if self.values is None else len(self.values)


@dataclass(frozen=True)
class TaskLoss:
    """Loss of a batch and its gradient at the head's input.

    Attributes
    ----------
    total
        Unreduced loss: the sum over samples, or over target tokens.
    weight
        What ``total`` is to be divided by for a mean: samples, or target tokens.
    gradient
        Derivative of ``total`` by what the head was given, in its shape.
    """

    total: float
    weight: float
    gradient: torch.Tensor


class RecordError(FedloraError):
    """A record that a task cannot use.

    Parameters
    ----------
    place
        Where it is among the records that the task was given, from 0. That is no row of a file:
        ``of`` names that for those who know it.
    reason
        What is wrong and how to mend it, as the rest of a sentence that begins with the record.
    """

    kind = "record"

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(f"a record {reason}")
        self.place = place
        self._reason = reason

    def of(self, source: str, row: int) -> FedloraError:
        """Return the error with the record's row, from 0, in the file that it came from."""
        error = FedloraError(f"record {row + 1} of {source} {self._reason}")
        error.kind, error.numbers = self.kind, {"record": row + 1}
        return error


class Counts(Protocol):
    """Sums over evaluated samples that add up over batches and clients."""

    @property
    def samples(self) -> int:
        """Number of samples."""

    def __add__(self, other: Self) -> Self:
        """Return the counts of both."""

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values."""

    def metrics(self) -> tuple[Metric, ...]:
        """Return the task's metric first, then others, among them ``loss``."""


class Task(ABC):
    """A kind of problem, as the client sees it.

    Parameters
    ----------
    config
        The scenario's ``task`` section.
    labels
        Class names in order; empty for a task without.

    Attributes
    ----------
    pooled
        Whether the head takes one vector a row (pooled on the server) instead of one a token.
    trains_head
        Whether the head trains where the scenario says ``auto``.
    tokens
        Whether samples are token ids of texts. Else no tokenizer is read, no column of texts is
        asked for, samples have ``values``, and ``front`` says what makes vectors of them.
    labelled
        Whether records have classes (``data.label``, ``task.labels``); where a task does not say,
        pooled texts have.
    """

    pooled: ClassVar[bool]
    trains_head: ClassVar[bool]
    tokens: ClassVar[bool] = True
    labelled: ClassVar[bool]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "labelled"):
            cls.labelled = cls.tokens and getattr(cls, "pooled", False)

    def __init__(self, config: TaskConfig, labels: Sequence[str] = ()) -> None:
        self.config = config
        self.labels = tuple(labels)

    @classmethod
    def language(cls) -> bool:
        """Tell whether each token of a text has a target, as in language modelling."""
        return cls.tokens and not cls.pooled

    @classmethod
    def records(
        cls, scenario: Scenario, which: Literal["train", "test"], *, labelled: bool
    ) -> list[Record]:
        """Read the records of ``data.train`` or ``data.test``; by default rows of named strings.

        Parameters
        ----------
        scenario
            Its ``data`` and ``task`` sections are used.
        which
            Which file.
        labelled
            Whether ``data.label`` has to be there as well.

        Raises
        ------
        FedloraError
            When they cannot be read, or lack what is learnt.
        """
        return list(load_records(scenario.data, which, labelled=labelled, texts=cls.tokens))

    def front(self, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int) -> nn.Module:
        """Build what makes vectors of samples on the client; by default the token embedding.

        It trains where ``train.embedding`` says so.

        Parameters
        ----------
        checkpoint, dtype
            The backbone, and the precision of its frozen weights.
        width
            Numbers of a vector: the width of the backbone's token embedding.
        seed
            The same seed gives the same weights on every client.
        """
        del seed
        if not self.tokens:
            raise FedloraError(
                f"task.kind is {self.config.kind}, whose inputs are no tokens, and it has no "
                f"front; let its front() return a module that makes vectors of {width} numbers"
            )
        return TokenEmbedding(checkpoint, dtype)

    def embed(self, front: nn.Module, samples: Sequence[Sample]) -> torch.Tensor:
        """Make the vectors of a batch.

        Parameters
        ----------
        front
            What ``front`` built. By default it is called with the packed ids, shape (tokens,), or
            the packed values, shape (places, numbers), of all samples.
        samples
            The batch.

        Returns
        -------
        torch.Tensor
            ``sample.length`` vectors of each, one after the other, shape (tokens, width).
        """
        if self.tokens:
            inputs = torch.tensor([token for sample in samples for token in sample.ids])
        else:
            inputs = torch.cat([s.values for s in samples if s.values is not None])
        embedded: torch.Tensor = front(inputs)
        return embedded

    @abstractmethod
    def samples(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, data: DataConfig
    ) -> list[Sample]:
        """Encode records; each sample names its record as its ``source``.

        Parameters
        ----------
        records
            What ``records`` read, or some of it.
        tokenizer
            The checkpoint's; None where the task's inputs are no tokens.
        data
            Which columns are what.

        Raises
        ------
        FedloraError
            When a record cannot be used, such as one with an unknown label; as a ``RecordError``
            the message can name its row.
        """

    @abstractmethod
    def head(self, checkpoint: Checkpoint, dtype: torch.dtype, width: int, seed: int) -> nn.Module:
        """Build the head; the same seed gives the same weights on every client."""

    @abstractmethod
    def loss(
        self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample], *, sample_mean: bool
    ) -> TaskLoss:
        """Compute loss and gradient, and add the head's own gradient where it trains.

        Parameters
        ----------
        head
            What ``head`` built.
        z
            Input of the head: (samples, width) if pooled, else packed (tokens, width).
        samples
            The batch.
        sample_mean
            Reduce each sample to its token mean first, so that a sample's gradient does not grow
            with its length (as per-sample clipping needs).
        """

    @abstractmethod
    def measure(self, head: nn.Module, z: torch.Tensor, samples: Sequence[Sample]) -> Counts:
        """Return the counts of an evaluation batch."""

    @abstractmethod
    def read_counts(self, value: Any) -> Counts:
        """Read counts that came over a wire; raises ``ProtocolError`` when they are not valid."""


def check_front(scenario: Scenario, front: nn.Module) -> None:
    """Refuse to train a front that has nothing to train.

    Raises
    ------
    FedloraError
        When the scenario says that it trains.
    """
    if scenario.train.embedding and not list(front.parameters()):
        raise FedloraError(
            f"train.embedding is true, and the front of task.kind {scenario.task.kind} has no "
            "weights that could train; set it to false"
        )


def head_trains(scenario: Scenario) -> bool:
    """Tell whether the head trains under this scenario."""
    train = scenario.head.train
    return task_class(scenario.task.kind).trains_head if train == "auto" else train == "yes"


def task_class(kind: str) -> type[Task]:
    """Return the task class that a scenario names.

    Raises
    ------
    FedloraError
        When there is none of that name, it is no task, or does not say what kind of one.
    """
    cls: type[Task] = resolve("tasks", kind, Task)
    for name in ("pooled", "trains_head", "tokens", "labelled"):
        if not isinstance(getattr(cls, name, None), bool):
            raise FedloraError(
                f"task.kind {kind!r} has {shown(getattr(cls, name, None))} as {name}; write "
                f"`{name} = True` or `{name} = False` in the class"
            )
    return cls


def check_pool(config: TaskConfig, checkpoint: Checkpoint) -> None:
    """Refuse to pool a decoder's first token, which sees itself alone.

    Raises
    ------
    FedloraError
        When ``task.pool`` is ``cls`` and the model's attention is causal.
    """
    pooled = task_class(config.kind).pooled
    if pooled and config.pool == "cls" and find_family(checkpoint).causal:
        raise FedloraError(
            f"task.pool is 'cls', and the first token of a decoder such as {checkpoint.model_type} "
            "sees itself alone, so that nothing of the text would be pooled; set task.pool to last "
            "or mean"
        )


def check_length(config: TaskConfig, checkpoint: Checkpoint) -> None:
    """Refuse a ``task.max_length`` beyond what the model takes.

    Raises
    ------
    FedloraError
        When samples could be longer than the model's positions.
    """
    settings = checkpoint.config
    longest = settings.get("max_position_embeddings", settings.get("n_positions"))
    if longest is not None and checkpoint.model_type == "roberta":
        longest -= settings.get("pad_token_id", 1) + 1  # it counts positions from after padding
    if longest is not None and config.max_length > longest:
        raise FedloraError(
            f"task.max_length {config.max_length} exceeds the {longest} positions of the model; "
            "lower it"
        )
